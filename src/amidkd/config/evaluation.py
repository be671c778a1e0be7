"""The run file's ``evaluation``: which rows, which answers, which metrics."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from amidkd.config.base import Section, path_field

__all__ = [
    "PASS_AT",
    "SUITE_TASKS",
    "AnswerMetric",
    "CodeConfig",
    "EvaluationConfig",
    "JudgeConfig",
    "LmEvalConfig",
    "SpeculativeConfig",
    "SuiteName",
    "SuiteTaskConfig",
]

SuiteName = Literal["dolly", "self_instruct", "vicuna", "super_natural", "unnatural"]
SUITE_TASKS: tuple[SuiteName, ...] = ("dolly", "self_instruct", "vicuna", "super_natural", "unnatural")
"""The instruction sets of the papers' protocol, in the order of their tables."""

PASS_AT = (1, 2, 3, 4, 5, 8, 10, 16, 20, 25, 32, 50, 64, 100, 128, 200)
"""Each k of pass@k that can be measured."""

AnswerMetric = Literal[
    "exact_match",
    "rouge_l",
    "phoneme_error_rate",
    "character_error_rate",
    "bleu",
    "chrf",
    "numeric_match",
    "distinct_n",
    "self_bleu",
]


class SuiteTaskConfig(Section):
    """One set of prompts of the suite: a known one, or any file of prompts with references."""

    name: str = Field(
        description="`dolly`, `self_instruct`, `vicuna`, `super_natural`, `unnatural`; or your own name, with `data`."
    )
    data: str | None = path_field(None, description="JSONL, Parquet, folder or hub name instead of the known place.")
    split: str | None = Field(None, description="Split, for a hub data set. Default: that of the known one, or `test`.")
    max_rows: int | None = Field(None, gt=0, description="Use only the first rows. Default: evaluation.max_rows.")
    metrics: list[AnswerMetric] | None = Field(None, description="Metrics of its answers. Default: evaluation.metrics.")

    @model_validator(mode="after")
    def _known_or_placed(self) -> "SuiteTaskConfig":
        if not re.fullmatch(r"[a-z0-9_-]+", self.name):
            raise ValueError(f"a suite task's name is made of a–z, 0–9, _ and -; got {self.name!r}")
        if self.name == "text":
            raise ValueError("a suite task cannot be called 'text', the name of what evaluation.text gives")
        if self.name not in SUITE_TASKS and self.data is None:
            raise ValueError(f"{self.name!r} is none of {', '.join(SUITE_TASKS)}; give the file of its rows as `data`")
        return self


class CodeConfig(Section):
    """Run the code that a model answers, against each row's tests, in a subprocess with limits: pass@k."""

    k: list[int] = Field([1], min_length=1, description="The k of pass@k; at most the number of sampling seeds.")
    tests: str = Field(
        "test", description="Column with the Python code that is run after the answer, as text or a list of lines."
    )
    entry_point: str = Field(
        "entry_point",
        description="Column with the name of the function asked for, where there is one: the tests' `check` is called "
        "with it, and an answer that does not define it goes on from the prompt.",
    )
    timeout: float = Field(10.0, gt=0, description="Seconds that an answer may run.")
    memory_mb: int = Field(1024, gt=0, description="MiB of address space that it may use.")
    file_mb: int = Field(16, gt=0, description="MiB that a file which it writes may have.")
    processes: int = Field(0, ge=0, description="Processes and threads that it may start.")

    @field_validator("k")
    @classmethod
    def _measured(cls, value: list[int]) -> list[int]:
        strange = sorted(set(value) - set(PASS_AT))
        if strange:
            raise ValueError(f"{strange[0]} is none of {', '.join(map(str, PASS_AT))}")
        return sorted(set(value))


class LmEvalConfig(Section):
    """Tasks of EleutherAI's lm-evaluation-harness (extra ``lm-eval``)."""

    tasks: list[str] = Field(min_length=1, description="Names of tasks.")
    num_fewshot: int | None = Field(None, ge=0, description="Examples before each question. Default: the task's.")
    limit: int | None = Field(None, gt=0, description="Use only the first rows of each task.")
    include_path: str | None = path_field(None, description="Folder with task files of your own.")
    batch_size: int = Field(8, gt=0, description="Rows in a batch.")
    teacher: bool = Field(True, description="Ask the teacher too.")


class JudgeConfig(Section):
    """A language model that says which of two answers is better, at any OpenAI-compatible address."""

    url: str = Field(description="Address up to `/v1`, such as `http://localhost:8000/v1`.")
    model: str = Field(description="The model's name there.")
    key_variable: str | None = Field(None, description="Environment variable that holds the key. Default: no key.")
    against: Literal["teacher", "reference"] = Field(
        "teacher", description="Whose answer the student's is held against."
    )
    answers: Literal["greedy", "sampled"] = Field(
        "greedy", description="Which answers are judged: the greedy ones, or those of the first sampling seed."
    )
    rows: int = Field(80, gt=0, description="Prompts that are judged, the first ones.")
    instruction: str | None = Field(None, description="What the judge is told to weigh. Default: help, truth, form.")
    max_tokens: int = Field(512, gt=0, description="Longest verdict, in tokens.")
    timeout: float = Field(60.0, gt=0, description="Seconds to wait for a verdict.")
    parallel: int = Field(4, gt=0, description="Verdicts asked for at once.")


class SpeculativeConfig(Section):
    """The student as a draft model: how many of its tokens the teacher keeps in assisted generation."""

    rows: int = Field(16, gt=0, description="Prompts, the first ones.")
    draft_tokens: int = Field(5, gt=0, description="Tokens that the student drafts at a time.")
    max_new_tokens: int | None = Field(None, gt=0, description="Longest answer. Default: evaluation's.")
    seed: int = Field(10, ge=0, description="Seed of the sampling.")


class EvaluationConfig(Section):
    """How students are compared with their teacher."""

    data: str | None = path_field(None, description="Rows to evaluate on. Default: data.validation.")
    split: str = Field("test", description="Split, for a hub data set.")
    max_rows: int | None = Field(None, gt=0, description="Use only the first rows.")
    batch_size: int = Field(64, gt=0, description="Rows in a batch.")
    max_new_tokens: int | None = Field(None, gt=0, description="Longest answer. Default: data.generation's.")
    sampling_seeds: list[int] = Field(
        [10, 20, 30, 40, 50],
        min_length=1,
        description="Seeds of the sampled answers, one set of answers each.",
    )
    temperature: float = Field(1.0, gt=0, description="Temperature of the sampled answers.")
    no_repeat_ngram_size: int = Field(
        0,
        ge=0,
        description="No run of so many tokens comes twice in prompt and answer, as in `transformers` (6 in the papers' "
        "code); 0 leaves answers as the model gives them.",
    )
    metrics: list[AnswerMetric] = Field(
        ["exact_match", "rouge_l", "distinct_n", "self_bleu"],
        min_length=1,
        description="What is measured of answers, beside their length.",
    )
    coverage_epsilon: float = Field(
        1e-3, gt=0, lt=1, description="Coverage is the teacher's mass on tokens that the student gives more than this."
    )
    calibration_bins: int = Field(15, gt=1, description="Bins of confidence of the calibration error.")
    text: str | None = path_field(None, description="Plain text (rows with `text`) whose perplexity is measured too.")
    suite: list[SuiteTaskConfig] | None = Field(
        None,
        description="Instruction sets with the papers' protocol: `paper` for all five, or a list of names or sections.",
    )
    suite_folder: str | None = path_field(
        None, description="Folder where files of the suite are looked for before their hub names."
    )
    suite_max_prompt_length: int = Field(256, gt=0, description="Longest prompt of the suite, in tokens.")
    suite_max_length: int = Field(512, gt=1, description="Longest prompt and answer of the suite, in tokens.")
    speculative: SpeculativeConfig | None = Field(
        None,
        description="Measure the student as a draft for the teacher by assisted generation; `{}` for the defaults.",
    )
    code: CodeConfig | None = Field(
        None,
        description="pass@k. It runs code that a model wrote: off unless this section is there; `{}` for defaults.",
    )
    lm_eval: LmEvalConfig | None = Field(
        None, description="Tasks of the lm-evaluation-harness; a list of names is enough."
    )
    judge: JudgeConfig | None = Field(None, description="A language model as judge.")
    bootstrap: int = Field(2000, ge=100, description="Resamples of the bootstrap intervals.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Level of the intervals.")
    samples_kept: int = Field(50, ge=0, description="Rows of samples.jsonl.")
    token_rows: int = Field(
        20,
        ge=0,
        description="Rows of tokens.jsonl: those where the student is farthest from the teacher, token by token.",
    )
    after_training: bool = Field(False, description="Evaluate at the end of `distill` and `sft`.")

    @field_validator("suite", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = SUITE_TASKS if value == "paper" else [value]
        if isinstance(value, list | tuple):
            return [{"name": entry} if isinstance(entry, str) else entry for entry in value]
        return value

    @field_validator("lm_eval", mode="before")
    @classmethod
    def _tasks_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [value]
        return {"tasks": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _possible(self) -> "EvaluationConfig":
        if self.suite is not None:
            names = [task.name for task in self.suite]
            twice = sorted({name for name in names if names.count(name) > 1})
            if not names or twice:
                raise ValueError(f"suite: {'names given twice: ' + ', '.join(twice) if twice else 'an empty list'}")
        again = sorted({seed for seed in self.sampling_seeds if self.sampling_seeds.count(seed) > 1})
        if again:
            raise ValueError(
                f"sampling_seeds: {', '.join(map(str, again))} given twice, which would count the same answers twice"
            )
        if self.suite_max_prompt_length >= self.suite_max_length:
            raise ValueError("suite_max_prompt_length leaves no room for an answer: it must be below suite_max_length")
        if self.code is not None and max(self.code.k) > len(self.sampling_seeds):
            raise ValueError(
                f"code.k: pass@{max(self.code.k)} needs {max(self.code.k)} answers to a prompt; there are "
                f"{len(self.sampling_seeds)} sampling_seeds"
            )
        return self

    def suite_tasks(self) -> list[SuiteTaskConfig]:
        """The tasks of the suite; none without one."""
        return list(self.suite or [])
