"""The command line: one verb a task, each over a run file and dotted overrides.

Nothing heavy is imported before the run file has been read and checked.
"""

import argparse
import errno
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from amidkd import __version__
from amidkd.allocator import keep_large_blocks
from amidkd.config import RunConfig, ServedTeacher, dump_yaml, final_config, load
from amidkd.errors import GenerationError, LossError, SettingError, TeacherError
from amidkd.record import RunFolder, write_atomic

__all__ = ["main"]

_log = logging.getLogger("amidkd")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: Words after ``amidkd``; default: those of the process.

    Returns:
        0 when done; 2 for a setting, file or row that cannot be used (one message, no traceback);
        1 for a run that had to stop (a loss that is not finite, a server that is gone, a full disk) and
        for a doctor that found something wrong; 130 after an interrupt.
    """
    options = _options(arguments)
    if options.verb is None:
        _parser().print_help()
        return 0
    _set_up_messages()
    keep_large_blocks()
    try:
        code = options.run(options)
        sys.stdout.flush()
        return code
    except SettingError as error:
        print(f"amidkd: {error}", file=sys.stderr)
        return 2
    except LossError as error:
        print(f"amidkd: training stopped: {error}", file=sys.stderr)
        return 1
    except GenerationError as error:
        print(f"amidkd: no text to learn from: {error}", file=sys.stderr)
        return 1
    except TeacherError as error:
        print(f"amidkd: no teacher to learn from: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read the output has had enough, as in `amidkd cite run.yaml | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(f"amidkd: cannot write: {error}. What was saved before is complete.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "amidkd: interrupted. Go on from the last checkpoint with training.resume_from_checkpoint=true",
            file=sys.stderr,
        )
        return 130


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes no setting that comes after an option.
    if rest and not (hasattr(options, "overrides") and all("=" in word and not word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amidkd",
        description="Knowledge distillation for language models through alpha-mixture assistants.",
        epilog="A run is a YAML file; any of its settings can be given as section.key=value after it. "
        "Settings: docs/reference/run-file.md.",
    )
    parser.add_argument("--version", action="version", version=f"amidkd {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for name, (action, help_text) in _VERBS.items():
        verb = verbs.add_parser(name, help=help_text, description=help_text)
        if name == "demo":
            verb.add_argument("folder", nargs="?", default="demo-run", help="where the runs and the report go")
        elif name == "report":
            verb.add_argument("source", metavar="RUN", nargs="?", help="a run file, or the folder of a run or a sweep")
            verb.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that differ")
            verb.add_argument(
                "--compare",
                metavar="RUN",
                nargs="+",
                help="folders of runs to compare with the first, on the same prompts",
            )
            verb.add_argument("--format", choices=("html", "md", "json"), default="html", help="what is written")
        elif name == "watch":
            verb.add_argument("source", metavar="RUN", help="the folder of a run or a sweep, in progress or done")
            verb.add_argument("--tui", action="store_true", help="show it in this terminal instead of a browser")
            verb.add_argument(
                "--port", type=int, default=0, help="port of the page on this machine; default: a free one"
            )
        else:
            verb.add_argument("source", metavar="RUN", help="a run file, or the folder of a run")
            verb.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that differ")
        verb.set_defaults(run=action)
    return parser


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever ``sys.stderr`` is at the time, above a progress bar that is on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        if "tqdm" in sys.modules:
            from tqdm import tqdm

            tqdm.write(self.format(record), file=sys.stderr)
        else:
            print(self.format(record), file=sys.stderr)


def _set_up_messages() -> None:
    """Plain lines for people on standard error, from the first process alone; results go to standard output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    first = int(os.environ.get("RANK", "0")) == 0
    if not _log.handlers:
        _log.addHandler(_StderrHandler())
    _log.setLevel(logging.INFO if first else logging.ERROR)
    _log.propagate = False

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, DeprecationWarning | FutureWarning | PendingDeprecationWarning):
            return
        _log.warning("warning: %s", message)

    warnings.showwarning = show


def _config(options: argparse.Namespace) -> RunConfig:
    return load(options.source, options.overrides)


def _demo(options: argparse.Namespace) -> int:
    from amidkd.demo import run_demo

    run_demo(Path(options.folder).resolve())
    return 0


def _train(verb: str) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        config = _config(options)
        from amidkd import training

        folder = training.distill(config) if verb == "distill" else training.sft(config)
        if int(os.environ.get("RANK", "0")) == 0:
            from amidkd.doctor import compare_with_estimate

            held_against = compare_with_estimate(folder)
            if held_against is not None:
                print(held_against)
            print(f"Student: {folder.student}")
            print(f"Next:    amidkd eval {_shown(folder.path)}    then    amidkd report {_shown(folder.path)}")
        return 0

    return run


def _generate(options: argparse.Namespace) -> int:
    config = _config(options)
    from amidkd.training import run_generate

    folder = run_generate(config)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"Text: {folder}")
    return 0


def _cache(options: argparse.Namespace) -> int:
    config = _config(options)
    from amidkd.training import run_cache

    folder = run_cache(config)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"Cache: {folder}")
        print(f"Next:  {_with_cache(options, config, folder)}")
    return 0


def _with_cache(options: argparse.Namespace, config: RunConfig, folder: Path) -> str:
    """The command that trains from a cache."""
    teacher, given = config.teacher, [word for word in options.overrides if word != "teacher.kind=cached"]
    if isinstance(teacher, ServedTeacher):
        # Its settings are those of a server, which a cache does not take.
        given = [word for word in given if not word.startswith(("teacher.", "teacher="))]
        kind = f"teacher={{kind: cached, folder: {folder}, format: {teacher.format}, top_k: {teacher.top_k}}}"
    else:
        kind = "teacher.kind=cached"
    return shlex.join(["amidkd", "distill", options.source, *given, kind])


def _eval(options: argparse.Namespace) -> int:
    whole = _config(options)
    config = final_config(whole)
    from amidkd.evaluation import evaluate_run, print_evaluation

    folder = RunFolder(Path(config.output.folder))
    print_evaluation(evaluate_run(config, folder))
    if not folder.run_file.exists():
        # Before training: from now on the folder stands for the run, as `amidkd report` takes it.
        write_atomic(folder.run_file, dump_yaml(whole))
    print(f"Written to {folder.record_file}, {folder.samples_file.name} and {folder.scores_file.name}")
    from amidkd.report.card import refresh_card

    refresh_card(folder)
    return 0


def _report(options: argparse.Namespace) -> int:
    if options.compare:
        return _comparison(options)
    if options.source is None:
        raise SettingError("report: name the folder of a run or a sweep, or several runs after --compare")
    folder = Path(options.source)
    if not (folder / "sweep.json").is_file():
        config = _config(options)
        # A folder that was moved is where it is, whatever its run file says.
        if not folder.is_dir() or options.overrides:
            folder = Path(config.output.folder)
    from amidkd.report import report_on

    print(f"Report: {report_on(folder, options.format)}")
    return 0


def _comparison(options: argparse.Namespace) -> int:
    paths = [Path(word) for word in ([options.source] if options.source else []) + options.compare]
    from amidkd.report import compared, print_compared, write_compared

    found = compared(paths)
    print_compared(found)
    print(f"Report: {write_compared(found, options.format)}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    config = _config(options)
    from amidkd.sweep import run_sweep

    return run_sweep(config)


def _watch(options: argparse.Namespace) -> int:
    from amidkd.watch import watch

    watch(Path(options.source), terminal=options.tui, port=options.port)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    config = _config(options)
    from amidkd.doctor import examine

    return 0 if examine(config, show=print) else 1


def _serve(options: argparse.Namespace) -> int:
    from amidkd.config import load_serving

    teacher, settings = load_serving(options.source, options.overrides)
    from amidkd.serving import serve

    serve(teacher, settings, ready=lambda url: print(f"Serving {teacher.title} at {url}", flush=True))
    return 0


def _cite(options: argparse.Namespace) -> int:
    from amidkd.citations import citations_of

    print("\n\n".join(citation.bibtex for citation in citations_of(_config(options))))
    return 0


def _shown(path: Path) -> str:
    """A path as short as it can be typed from the working directory."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


_VERBS: dict[str, tuple[Callable[[argparse.Namespace], int], str]] = {
    "demo": (_demo, "distil the built-in teacher into small students and compare them; needs no file"),
    "doctor": (_doctor, "check a run before it starts, and estimate its memory and time"),
    "distill": (_train("distill"), "train the student on the teacher's distributions"),
    "sft": (_train("sft"), "train by cross-entropy: a teacher, a starting point or a baseline"),
    "generate": (_generate, "write the teacher's, or the student's, text to the prompts"),
    "cache": (_cache, "ask the teacher about all rows, once, into files that training reads"),
    "serve": (_serve, "serve a run's teacher, or a model folder, to students on other machines"),
    "eval": (_eval, "measure a run's student beside its teacher"),
    "sweep": (_sweep, "try settings of a run, such as alpha, and compare what comes out"),
    "report": (_report, "write the report of a run or a sweep, or compare several runs"),
    "watch": (_watch, "follow a run in progress, in a browser or in the terminal"),
    "cite": (_cite, "print BibTeX for the methods that a run uses"),
}
