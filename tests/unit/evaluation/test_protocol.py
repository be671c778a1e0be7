"""The suite: which files, which template, which limits, and what is refused before any model is loaded."""

from pathlib import Path

import pytest

from amidkd.config import load, parse
from amidkd.config.evaluation import SUITE_TASKS
from amidkd.data import INSTRUCTION, Encoder, evaluation_rows
from amidkd.errors import SettingError
from amidkd.evaluation import Estimate, evaluate_run, print_evaluation, read_scores
from amidkd.evaluation.protocol import _KNOWN
from amidkd.evaluation.row_sets import row_sets
from amidkd.record import RunFolder, read_json_lines, write_json_lines

WRAPPED = INSTRUCTION.replace("{prompt}", "red cat")


@pytest.fixture
def tree(saved_world: Path, tmp_path: Path) -> dict:
    write_json_lines(tmp_path / "valid.jsonl", [{"prompt": "red", "completion": "cat"}] * 3)
    suite = tmp_path / "suite"
    suite.mkdir()
    write_json_lines(suite / "dolly_dev.jsonl", [{"prompt": WRAPPED, "completion": "dog runs", "task": "qa"}] * 2)
    papers = [{"prompt": "blue<n>bird", "output": ["sings here", "sings<n>now"]}, {"prompt": "dog", "output": "runs"}]
    (suite / "sinst" / "11_").mkdir(parents=True)
    write_json_lines(suite / "sinst" / "11_" / "valid.jsonl", papers)
    write_json_lines(tmp_path / "own.jsonl", [{"prompt": "dog", "completion": "runs"}] * 4)
    return {
        "student": {"model": str(saved_world / "student"), "dtype": "auto"},
        "teacher": {"model": str(saved_world / "teacher"), "dtype": "auto"},
        "data": {
            "train": str(tmp_path / "valid.jsonl"),
            "validation": str(tmp_path / "valid.jsonl"),
            "prompt_template": "<s> {prompt} <sep>",
            "completion_template": "x {completion}",
        },
        "evaluation": {
            "sampling_seeds": [1, 2],
            "max_new_tokens": 3,
            "batch_size": 4,
            "suite": ["dolly", "super_natural", {"name": "mine", "data": str(tmp_path / "own.jsonl"), "max_rows": 3}],
            "suite_folder": str(suite),
            "suite_max_prompt_length": 30,
            "suite_max_length": 40,
        },
        "output": str(tmp_path / "run"),
    }


def changed(tree: dict, **settings) -> dict:
    return {**tree, "evaluation": {**tree["evaluation"], **settings}}


def test_rows_are_found_and_read_as_the_papers_write_them(tree: dict) -> None:
    main, dolly, super_natural, mine = row_sets(parse(tree))
    assert (main.name, len(main.rows), main.max_new_tokens) == ("", 3, 3)
    assert [entry.name for entry in (dolly, super_natural, mine)] == ["dolly", "super_natural", "mine"]
    assert dolly.file.endswith("dolly_dev.jsonl")
    assert super_natural.file.endswith("sinst/11_/valid.jsonl")
    first, second = super_natural.rows
    assert (first.prompt, first.completion) == ("blue\nbird", "sings here")
    assert first.references == ("sings here", "sings\nnow")
    assert second.references == ("runs",)
    assert len(mine.rows) == 3


def test_the_papers_template_and_limits_hold_whatever_the_run_was_trained_on(tree: dict, world) -> None:
    _, dolly, super_natural, _ = row_sets(parse(tree))
    encoder = Encoder(world.tokenizer, super_natural.data)
    assert encoder.prompt_text(super_natural.rows[1]) == INSTRUCTION.replace("{prompt}", "dog")
    # A prompt that stands in the template already is not wrapped twice.
    assert encoder.prompt_text(dolly.rows[0]) == WRAPPED
    assert (encoder.config.max_length, encoder.prompt_limit) == (40, 30)
    assert encoder.completion_text(world.tokenizer.convert_tokens_to_ids(["red", "cat"])) == "red cat"
    assert dolly.max_new_tokens == 10
    short = Encoder(world.tokenizer, dolly.data.model_copy(update={"max_prompt_length": 5}))
    whole = encoder.prompt_tokens(dolly.rows[0])
    assert short.prompt_tokens(dolly.rows[0]) == whole[:5]


def test_the_papers_five_are_known_with_their_defaults(tree: dict) -> None:
    config = parse(changed(tree, suite="paper", sampling_seeds=[10, 20, 30, 40, 50])).evaluation
    assert [task.name for task in config.suite_tasks()] == list(SUITE_TASKS) == list(_KNOWN)
    plain = parse({key: value for key, value in tree.items() if key != "evaluation"}).evaluation
    assert (plain.suite_max_prompt_length, plain.suite_max_length) == (256, 512)
    assert (plain.temperature, plain.sampling_seeds) == (1.0, [10, 20, 30, 40, 50])


def test_each_task_is_measured_and_recorded_like_the_held_out_rows(tree: dict, capsys) -> None:
    folder = RunFolder(Path(tree["output"]))
    entry = evaluate_run(parse(tree), folder)
    assert folder.record()["results"]["evaluation"]["suite"] == entry["suite"]
    assert list(entry["suite"]) == ["dolly", "super_natural", "mine"]
    for name, rows in (("dolly", 2), ("super_natural", 2), ("mine", 3)):
        task = entry["suite"][name]
        assert task["data"]["rows"] == rows
        assert {"rouge_l_sampled", "nll", "kl_teacher_student"} <= set(task["student"]["metrics"])
        assert "rouge_l_sampled" in task["teacher"]["metrics"]
        ours, theirs, gap = (
            Estimate.from_json(task[side]["metrics"]["nll"]).value for side in ("student", "teacher", "difference")
        )
        assert gap == pytest.approx(ours - theirs)
        assert task["missing"] == []
    assert list(read_scores(folder.scores_file)) == ["", "dolly", "super_natural", "mine"]
    samples = read_json_lines(folder.samples_file)
    assert [sample.get("task") for sample in samples] == [None] * 3 + ["dolly"] * 2 + ["super_natural"] * 2 + [
        "mine"
    ] * 3
    print_evaluation(entry)
    printed = capsys.readouterr().out
    assert "super_natural" in printed
    assert "fill the limit" not in printed


def test_prompts_that_are_cut_are_counted_and_said(tree: dict, capsys) -> None:
    entry = evaluate_run(
        parse(changed(tree, suite=["dolly"], suite_max_prompt_length=7)), RunFolder(Path(tree["output"]))
    )
    assert entry["suite"]["dolly"]["data"]["prompts_at_limit"] == 2
    print_evaluation(entry)
    assert "dolly: 2 prompts fill the limit" in capsys.readouterr().out


def test_a_task_may_have_metrics_of_its_own(tree: dict, tmp_path: Path) -> None:
    task = {"name": "mine", "data": str(tmp_path / "own.jsonl"), "metrics": ["character_error_rate"]}
    metrics = evaluate_run(parse(changed(tree, suite=[task])), RunFolder(Path(tree["output"])))["suite"]["mine"]
    assert "character_error_rate_sampled" in metrics["student"]["metrics"]
    assert "rouge_l_sampled" not in metrics["student"]["metrics"]


def test_prompts_without_right_answers_are_refused_first(tree: dict, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("amidkd.evaluation.run.load_pair", lambda *_: pytest.fail("a model was loaded first"))
    write_json_lines(tmp_path / "bare.jsonl", [{"prompt": "red"}, {"prompt": "dog"}])
    bare = [{"name": "mine", "data": str(tmp_path / "bare.jsonl")}]
    folder = RunFolder(Path(tree["output"]))
    with pytest.raises(SettingError, match=r"suite, mine: exact_match, rouge_l: no row of .*bare\.jsonl.*`completion`"):
        evaluate_run(parse(changed(tree, suite=bare)), folder)
    rows = str(tmp_path / "bare.jsonl")
    with pytest.raises(SettingError, match=r"evaluation\.metrics: bleu: no row .* measure only distinct_n"):
        evaluate_run(parse(changed(tree, suite=None, data=rows, metrics=["bleu", "distinct_n"])), folder)
    # Nobody asked for the defaults: they are missing, not refused.
    assert row_sets(parse(changed(tree, suite=None, data=rows)))[0].rows
    assert row_sets(parse(changed(tree, suite=[{**bare[0], "metrics": ["distinct_n"]}])))[1].rows


def test_what_cannot_be_used_is_refused(tree: dict, tmp_path: Path, monkeypatch) -> None:
    folder = RunFolder(Path(tree["output"]))

    def offline(*_: object, **__: object) -> str:
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(
        SettingError,
        match=r"self_instruct: no self_instruct\.jsonl in .*MiniLLM/self-inst.*no network here.*data: FILE",
    ):
        evaluate_run(parse(changed(tree, suite="paper")), folder)
    with pytest.raises(SettingError, match="there is no folder"):
        evaluate_run(parse(changed(tree, suite_folder=str(tmp_path / "nowhere"))), folder)
    with pytest.raises(SettingError, match=r"suite_max_length: 400 tokens are more than the 64"):
        evaluate_run(parse(changed(tree, suite_max_length=400)), folder)
    write_json_lines(tmp_path / "text.jsonl", [{"text": "red cat"}])
    with pytest.raises(SettingError, match="a task needs a column `prompt`"):
        evaluate_run(parse(changed(tree, suite=[{"name": "mine", "data": str(tmp_path / "text.jsonl")}])), folder)
    with pytest.raises(SettingError, match="cannot be called 'text'"):
        parse(changed(tree, suite=[{"name": "text", "data": "x.jsonl"}]))


def test_what_is_nowhere_here_comes_from_the_hub(tree: dict, tmp_path: Path, monkeypatch) -> None:
    asked = []

    def download(name: str, file: str, *, repo_type: str) -> str:
        asked.append((name, file, repo_type))
        return str(tmp_path / "suite" / "sinst" / "11_" / "valid.jsonl")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    sets = row_sets(parse(changed(tree, suite="paper", suite_folder=None, max_rows=1)))
    assert asked == [
        ("MiniLLM/dolly", "valid.jsonl", "dataset"),
        ("MiniLLM/self-inst", "valid.jsonl", "dataset"),
        ("MiniLLM/Vicuna", "valid.jsonl", "dataset"),
        ("MiniLLM/sinst", "11_/valid.jsonl", "dataset"),
        ("MiniLLM/uinst", "11_/valid.jsonl", "dataset"),
    ]
    assert [len(entry.rows) for entry in sets[1:]] == [1] * 5


def test_paths_are_read_from_the_run_files_folder(tree: dict, tmp_path: Path) -> None:
    import yaml

    suite = ["dolly", {"name": "mine", "data": "own.jsonl"}]
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(changed(tree, suite=suite, suite_folder="suite", text="valid.jsonl")))
    config = load(file)
    assert config.evaluation.suite_tasks()[1].data == str(tmp_path / "own.jsonl")
    assert config.evaluation.suite_folder == str(tmp_path / "suite")
    assert config.evaluation.text == str(tmp_path / "valid.jsonl")


def test_the_shared_files_are_in_the_template_already(shared: Path, tree: dict) -> None:
    sets = row_sets(parse(changed(tree, suite=["dolly", "self_instruct"], suite_folder=str(shared / "data"))))
    assert [(entry.name, len(entry.rows)) for entry in sets[1:]] == [("dolly", 1000), ("self_instruct", 175)]
    assert all(row.prompt.startswith("Below is an instruction") for entry in sets[1:] for row in entry.rows)
    assert len(evaluation_rows(parse(tree))) == 3
