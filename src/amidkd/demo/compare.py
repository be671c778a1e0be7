"""``amidkd demo``: the packaged teacher is distilled in several ways, and the students are compared on one table."""

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from amidkd.config import RunConfig, live_teacher
from amidkd.data import Encoder, Row, evaluation_rows
from amidkd.demo.display import BASELINE, print_table, write_page
from amidkd.demo.runs import METHODS, Method, Scale, run_config, teacher_folder
from amidkd.demo.task import make_rows
from amidkd.errors import SettingError
from amidkd.evaluation import (
    DISTANCES,
    Estimate,
    ModelResult,
    difference,
    estimates_of,
    evaluate_model,
    stack_results,
    write_evaluation,
)
from amidkd.models import load_model, load_tokenizer
from amidkd.record import RunFolder, atomic_folder, commit_of, now, versions, write_json_lines
from amidkd.teachers import LiveTeacher, make_live
from amidkd.training import distill, run_generate, sft

__all__ = ["compare"]

_log = logging.getLogger("amidkd")

DATA_SEED = 2


@dataclass(frozen=True)
class _Judge:
    """What measures every model on the same prompts."""

    config: RunConfig
    tokenizer: Any
    rows: list[Row]
    encoder: Encoder
    teacher: LiveTeacher

    def measure(self, model: Any, name: str) -> ModelResult:
        longest = self.config.data.generation.max_new_tokens
        return evaluate_model(
            model,
            tokenizer=self.tokenizer,
            rows=self.rows,
            encoder=self.encoder,
            config=self.config.evaluation,
            max_new_tokens=longest,
            teacher=self.teacher,
            name=name,
        )


def compare(folder: Path, scale: Scale) -> RunFolder:
    """Answer, train, measure, report.

    Args:
        folder: Where everything goes.
        scale: How large it is.

    Raises:
        SettingError: The folder holds runs of other settings.
    """
    began, output = time.perf_counter(), RunFolder(folder)
    _write_data(output.path, scale)
    plan = [(method, seed) for seed in scale.training_seeds for method in METHODS]
    configs = {(m.key, seed): run_config(m, seed, folder=output.path, scale=scale) for m, seed in plan}
    started = now()
    answers = _answer_once(configs[METHODS[-1].key, scale.training_seeds[0]], output.path)
    for number, (method, seed) in enumerate(plan, start=1):
        _log.info("Run %d of %d: %s, seed %d", number, len(plan), method.detail, seed)
        _train(method, configs[method.key, seed], answers)
    judge = _judge(configs[METHODS[0].key, scale.training_seeds[0]])
    teacher = judge.measure(judge.teacher.model, "teacher")
    found = {
        method.key: [_evaluated(judge, configs[method.key, seed], teacher) for seed in scale.training_seeds]
        for method in METHODS
    }
    runs = {
        method.key: [RunFolder(Path(configs[method.key, seed].output.folder)) for seed in scale.training_seeds]
        for method in METHODS
    }
    record = output.update_record(
        **_summary(judge, scale, teacher, found),
        runs={key: [run.path.name for run in folders] for key, folders in runs.items()},
        training_seconds=round(sum(_seconds(run) for folders in runs.values() for run in folders), 1),
        started=started,
        finished=now(),
        seconds=round(time.perf_counter() - began, 1),
    )
    write_page(output, record, configs=configs, teacher=teacher, students=found)
    print_table(output, record)
    return output


def _write_data(folder: Path, scale: Scale) -> None:
    """The same files again for the same settings; a folder with other ones is left alone."""
    record = RunFolder(folder).record()
    settings = asdict(scale)
    if record and _plain(record.get("scale")) != _plain(settings):
        raise SettingError(f"{folder} holds a demo of another size; name another folder, or remove this one")
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    write_json_lines(data / "train.jsonl", make_rows(DATA_SEED, scale.rows, "train"))
    write_json_lines(data / "test.jsonl", make_rows(DATA_SEED, scale.test_rows, "test"))
    RunFolder(folder).update_record(kind="demo", scale=settings, versions=versions(), commit=commit_of(Path.cwd()))


def _plain(value: Any) -> Any:
    """As JSON gives it back: sequences are lists."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()} if isinstance(value, dict) else value


def _answer_once(config: RunConfig, folder: Path) -> Path:
    """The folder of the teacher's answers to the unlabelled prompts, which all runs share."""
    shared = config.model_copy(update={"output": config.output.model_copy(update={"folder": str(folder / "answers")})})
    return run_generate(shared)


def _train(method: Method, config: RunConfig, answers: Path) -> None:
    run = RunFolder(Path(config.output.folder))
    if config.data.unlabelled == "teacher_answers" and not run.generated.is_dir():
        with atomic_folder(run.generated) as temporary:
            shutil.copytree(answers, temporary, dirs_exist_ok=True)
    (distill if method.verb == "distill" else sft)(config)


def _judge(config: RunConfig) -> _Judge:
    tokenizer = load_tokenizer(teacher_folder())
    given = live_teacher(config.teacher)
    assert given is not None
    teacher = make_live(given, student_tokenizer=tokenizer, device="cpu")
    return _Judge(config, tokenizer, evaluation_rows(config), Encoder(tokenizer, config.data), teacher)


def _evaluated(judge: _Judge, config: RunConfig, teacher: ModelResult) -> ModelResult:
    """Measure a run's student, and write that into the run's own record."""
    run = RunFolder(Path(config.output.folder))
    model = load_model(run.student, dtype="float32")
    found = judge.measure(model, run.path.name)
    write_evaluation(
        config,
        run,
        found,
        teacher,
        file=str(config.data.validation),
        models={"student": (str(run.student), model), "teacher": (str(teacher_folder()), judge.teacher.model)},
    )
    return found


def _seconds(run: RunFolder) -> float:
    """What the run's training took, whenever it was done."""
    return float(sum(stage["seconds"] for stage in run.record()["stages"].values()))


def _summary(
    judge: _Judge, scale: Scale, teacher: ModelResult, found: Mapping[str, Sequence[ModelResult]]
) -> dict[str, Any]:
    """What the demo's record says of each model: estimates over prompts and over training seeds, and differences."""
    scores = {key: stack_results(results) for key, results in found.items()}
    # A teacher is no distance from itself; those numbers would only say that 0 is 0.
    alone = {name: entry for name, entry in teacher.estimates.items() if name not in DISTANCES}
    entries = {"teacher": alone} | {key: estimates_of(entry) for key, entry in scores.items()}
    gains = {
        key: {name: difference(entry[name], scores[BASELINE][name]) for name in entry}
        for key, entry in scores.items()
        if key != BASELINE
    }
    return {
        "models": {
            "teacher": {"parameters": _size(judge.teacher.model)},
            "student": {"parameters": _size(load_model(_first_student(judge)))},
        },
        "results": {
            "rows": len(judge.rows),
            "metrics": {key: _as_json(entry) for key, entry in entries.items()},
            f"difference from {BASELINE}": {key: _as_json(entry) for key, entry in gains.items()},
        },
    }


def _first_student(judge: _Judge) -> Path:
    return RunFolder(Path(judge.config.output.folder)).student


def _size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _as_json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_json() for name, estimate in estimates.items()}
