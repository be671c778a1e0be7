"""vLLM behind the seam, against a real HTTP server that speaks its protocol and checks every field."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_stand_in import StandIn, WrongError

from amidkd.config import SamplingConfig
from amidkd.errors import SettingError
from amidkd.generation import GenerationError, Prompts
from amidkd.generation.make import make_generator
from amidkd.generation.vllm_common import request_seed
from amidkd.generation.vllm_server import VllmServerGenerator
from amidkd.models import save_student
from tiny_world import make_model, make_tokenizer

EOS, VOCABULARY, HEAD = 2, 17, 20
TOKENS = [[1, 5, 9], [1, 6], [1, 7, 8, 9, 10, 11, 3], [12]]
PROMPTS = Prompts(tokens=TOKENS, limits=[12, 9, 12, 1], streams=[0, 1, 2, 3], seed=4)


def student(seed: int = 0) -> Any:
    return make_model(width=16, layers=2, seed=seed, padded_vocab=HEAD)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    save_student(student(), make_tokenizer(), folder)
    return folder


@pytest.fixture
def stand_in(served: Path) -> Iterator[StandIn]:
    server = StandIn(served)
    yield server
    server.stop()


@pytest.fixture
def client(stand_in: StandIn, tmp_path: Path) -> Iterator[Callable[..., VllmServerGenerator]]:
    made = []

    def make(model: Any = None, **changes: Any) -> VllmServerGenerator:
        sampling = {"temperature": 0, "max_new_tokens": 12}
        sampling |= {key: changes.pop(key) for key in ("temperature", "top_p", "top_k") if key in changes}
        known = {"eos_ids": (EOS,), "first": True, "rank": 0, "world": 1, "pause": lambda _: None}
        known |= {key: changes.pop(key) for key in (*known, "agree", "tokenizer", "vocab_size") if key in changes}
        engine = {"kind": "vllm", "url": stand_in.url, "timeout": 20, "retries": 3, "weight_push": "disk", **changes}
        generator = VllmServerGenerator(
            SamplingConfig(**sampling, engine=engine),
            **{
                "model": student() if model is None else model,
                "tokenizer": make_tokenizer(),
                "pad_id": 0,
                "vocab_size": VOCABULARY,
                "run_folder": tmp_path / "run",
                **known,
            },
        )
        made.append(generator)
        return generator

    yield make
    for generator in made:
        generator.close()


def in_process(model: Any, tmp_path: Path) -> list[list[int]]:
    made = make_generator(
        SamplingConfig(temperature=0),
        model=model, tokenizer=None, eos_ids=(EOS,), pad_id=0, vocab_size=VOCABULARY, run_folder=tmp_path,
        first=True, rank=0, world=1,
    )  # fmt: skip
    return made(PROMPTS)


def changed(model: Any) -> Any:
    """The same model after a large step."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3)
    return model


def test_greedy_answers_are_the_models_before_and_after_a_push(stand_in, client, tmp_path) -> None:
    model = student()
    generator = client(model)
    generator.update_weights(0)
    before = generator(PROMPTS)
    assert before == in_process(model, tmp_path)
    changed(model)
    assert generator(PROMPTS) == before
    generator.update_weights(0)
    assert generator(PROMPTS) == before
    generator.update_weights(7)
    after = generator(PROMPTS)
    assert after == in_process(model, tmp_path) != before
    kept = tmp_path / "run" / "server_weights"
    assert [path.name for path in kept.iterdir()] == ["weights-for-vllm-step-7"]
    assert len(stand_in.loaded) == 2
    generator.close()
    assert list(kept.iterdir()) == []


def test_adapters_are_merged_into_what_is_pushed(client, tmp_path) -> None:
    peft = pytest.importorskip("peft", reason="adapters need peft")
    base = student()
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    plain = in_process(model, tmp_path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1.0, generator=torch.Generator().manual_seed(1))
    generator = client(model)
    generator.update_weights(1)
    assert generator(PROMPTS) == in_process(model, tmp_path) != plain
    assert any("lora_" in name for name, _ in model.named_parameters())


def test_eos_is_there_where_it_came_and_the_limit_holds_where_not(client) -> None:
    free = client(eos_ids=())(PROMPTS)
    assert [len(one) for one in free] == PROMPTS.limits
    eos = free[0][3]
    ended = client(eos_ids=(eos,))(PROMPTS)
    assert ended[0] == free[0][: free[0].index(eos) + 1]
    assert all(len(one) <= limit for one, limit in zip(ended, PROMPTS.limits, strict=True))


def test_a_sampled_answer_depends_on_seed_and_stream_alone(stand_in, client) -> None:
    generator = client(temperature=1.5, top_p=0.95, top_k=15, eos_ids=())
    made = generator(PROMPTS)
    back = Prompts(tokens=TOKENS[::-1], limits=PROMPTS.limits[::-1], streams=[3, 2, 1, 0], seed=4)
    assert generator(back) == made[::-1]
    assert generator(Prompts(TOKENS, PROMPTS.limits, [4, 5, 6, 7], 4)) != made
    assert generator(Prompts(TOKENS, PROMPTS.limits, [0, 1, 2, 3], 5)) != made
    body = stand_in.bodies[-1]
    assert (body["temperature"], body["top_p"], body["top_k"]) == (1.5, 0.95, 15)
    assert len({request_seed(seed, stream) for seed in range(20) for stream in range(20)}) == 400


def test_rows_that_pad_the_head_never_come(client, stand_in) -> None:
    model = student()
    with torch.no_grad():
        model.lm_head.weight[VOCABULARY:] = 20.0 * model.lm_head.weight[:3]
    generator = client(model, temperature=1.0)
    generator.update_weights(1)
    assert max(token for one in generator(PROMPTS) for token in one) < VOCABULARY
    wide = client(model, vocab_size=None, temperature=1.0)
    assert max(token for one in wide(PROMPTS) for token in one) >= VOCABULARY


def test_several_requests_are_in_flight(client, stand_in) -> None:
    generator = client()
    stand_in.delay = 0.05
    told = []
    many = Prompts(TOKENS * 4, [3] * 16, list(range(16)), 0)
    made = generator(many, lambda answers, tokens: told.append((answers, tokens)))
    assert stand_in.most_in_flight > 1
    assert [sum(column) for column in zip(*told, strict=True)] == [16, sum(map(len, made))]


@pytest.mark.parametrize(
    ("faults", "pauses"),
    [([500], [1]), ([429, 503], [1, 2]), (["close", "truncate", 502], [1, 2, 4])],
    ids=["one error", "too many requests", "half answers"],
)
def test_what_may_pass_is_tried_again_with_growing_pauses(stand_in, client, tmp_path, faults, pauses) -> None:
    waited: list[float] = []
    model = student()
    generator = client(model, pause=waited.append)
    generator.update_weights(0)
    stand_in.faults = list(faults)
    one = Prompts(TOKENS[:1], [12], [0], 4)
    assert generator(one) == in_process(model, tmp_path)[:1]
    assert waited == pauses


@pytest.mark.parametrize("fault", [500, 429, "close", "truncate"])
def test_what_does_not_pass_ends_after_the_last_try(stand_in, client, fault) -> None:
    waited: list[float] = []
    generator = client(pause=waited.append, retries=3)
    stand_in.faults = [fault] * 100
    with pytest.raises(GenerationError, match=r"/v1/completions failed 4 times; the last time: .+ resume") as caught:
        generator(Prompts(TOKENS[:1], [12], [0], 4))
    assert stand_in.url in str(caught.value)
    assert waited == [1, 2, 4]
    assert len(stand_in.faults) == 96


def test_a_refusal_is_final_and_quotes_the_server(stand_in, client) -> None:
    waited: list[float] = []
    generator = client(pause=waited.append)
    stand_in.faults = [400]
    with pytest.raises(GenerationError, match="status 400: asked to fail with 400"):
        generator(PROMPTS)
    assert waited == []


def _choice(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    def edit(value: dict[str, Any]) -> dict[str, Any]:
        value["choices"][0].update(fields)
        if "token_ids" in fields and isinstance(fields["token_ids"], list):
            value["usage"]["completion_tokens"] = len(fields["token_ids"])
        return value

    return edit


def _whole(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda value: {**value, **fields}


def _without(name: str) -> Callable[[dict[str, Any]], Any]:
    def edit(value: dict[str, Any]) -> dict[str, Any]:
        del value["choices"][0][name]
        return value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda value: [value], "no answers came"),
        (_whole(choices=[]), "0 answers came"),
        (lambda value: {**value, "choices": value["choices"] * 2}, "2 answers came"),
        (_choice(index=1), "has index 1"),
        (_whole(model="another"), "model 'another' answered"),
        (_without("token_ids"), "vLLM 0.10.2"),
        (_choice(token_ids=None), "not a list of integers"),
        (_choice(token_ids=["5"], finish_reason="length"), "not a list of integers"),
        (_choice(token_ids=[True], finish_reason="length"), "not a list of integers"),
        (_choice(token_ids=[]), "0 tokens came"),
        (_choice(token_ids=[5] * 13, finish_reason="length"), "13 tokens came"),
        (_choice(token_ids=[5] * 11 + [VOCABULARY], finish_reason="length"), "outside the vocabulary"),
        (_choice(token_ids=[5, -1, EOS], finish_reason="stop"), "outside the vocabulary"),
        (_choice(token_ids=[5, EOS, 5, EOS], finish_reason="stop"), "wrote on after EOS"),
        (_choice(token_ids=[5, 6], finish_reason="stop", stop_reason=None), "no EOS"),
        (_choice(token_ids=[5, EOS], finish_reason="stop", stop_reason="."), "stopped at"),
        (_choice(token_ids=[5, 6], finish_reason="length"), "cut at 2 tokens"),
        (_choice(finish_reason="abort"), "neither stop nor length"),
        (_choice(finish_reason=None), "neither stop nor length"),
        (_choice(prompt_token_ids=[1, 5, 8]), "read the prompt as"),
        (_choice(prompt_token_ids=[1, 1, 5, 9]), "read the prompt as"),
        (_whole(usage={"prompt_tokens": 4}), "counts 4"),
        (_whole(usage={"completion_tokens": 0}), "counts 3 and 0"),
    ],
)
def test_an_odd_answer_is_an_error_and_is_not_asked_for_again(stand_in, client, edit, message) -> None:
    generator = client()
    asked = stand_in.calls["/v1/completions"]
    stand_in.faults = [edit]
    with pytest.raises(GenerationError, match=message):
        generator(Prompts(TOKENS[:1], [12], [0], 4))
    assert stand_in.calls["/v1/completions"] == asked + 1


def test_a_right_answer_at_the_limit_may_end_with_eos(stand_in, client) -> None:
    """Versions of vLLM differ in what they call it."""
    generator = client()
    for finish in ("length", "stop"):
        stand_in.faults = [_choice(token_ids=[5] * 11 + [EOS], finish_reason=finish, stop_reason=None)]
        assert generator(Prompts(TOKENS[:1], [12], [0], 4)) == [[5] * 11 + [EOS]]


def test_a_server_that_was_started_anew_gets_the_pushed_weights_again(stand_in, client, tmp_path) -> None:
    model = changed(student())
    wanted, one_at_a_time = in_process(model, tmp_path), threading.Lock()

    def start_again(_: float) -> None:
        with one_at_a_time:
            stand_in.start()

    generator = client(model, pause=start_again)
    generator.update_weights(3)
    for times in (2, 3):
        stand_in.stop()
        assert generator(PROMPTS) == wanted
        assert stand_in.loaded == ["weights-for-vllm-step-3"] * times


def test_a_server_that_dies_for_good(served, client, tmp_path) -> None:
    """A process of its own, which ends in the midst of its third answer."""
    script = Path(__file__).with_name("vllm_stand_in.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(served), "--die-after", "2"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        generator = client(url=url, retries=2)
        assert generator(Prompts(TOKENS[:1], [3], [0], 4))
        with pytest.raises(GenerationError, match="failed 3 times; the last time: ConnectionRefusedError"):
            generator(PROMPTS)
        assert process.wait(timeout=20) == 1
        with pytest.raises(GenerationError, match="/collective_rpc failed 3 times"):
            generator.update_weights(2)
    finally:
        process.kill()
        process.wait()


def test_two_processes_ask_one_pushes_and_both_wait(stand_in, client, tmp_path) -> None:
    meeting, said = threading.Barrier(2, timeout=20), [None, None]

    def agree_as(rank: int) -> Callable[[str | None], str | None]:
        def agree(message: str | None) -> str | None:
            said[rank] = message
            meeting.wait()
            found = next((one for one in said if one is not None), None)
            meeting.wait()
            return found

        return agree

    model = changed(student())
    both = [client(model, first=rank == 0, rank=rank, world=2, agree=agree_as(rank)) for rank in (0, 1)]
    results: dict[int, Any] = {}

    def work(rank: int, version: int) -> None:
        try:
            both[rank].update_weights(version)
            results[rank] = both[rank](PROMPTS)
        except GenerationError as error:
            results[rank] = str(error)

    def together(version: int) -> None:
        threads = [threading.Thread(target=work, args=(rank, version)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    together(5)
    assert results[0] == results[1] == in_process(model, tmp_path)
    assert stand_in.loaded == ["weights-for-vllm-step-5"]
    stand_in.stop()
    together(6)
    assert results[0] == results[1]
    assert "/collective_rpc failed 4 times" in results[0]


def test_tokens_of_the_environment(stand_in, client, monkeypatch) -> None:
    stand_in.token = "open sesame"
    with pytest.raises(SettingError, match=r"engine\.url: .*status 401: Unauthorized"):
        client()
    monkeypatch.delenv("AMIDKD_TEST_TOKEN", raising=False)
    with pytest.raises(SettingError, match=r"engine\.token_variable: .*AMIDKD_TEST_TOKEN"):
        client(token_variable="AMIDKD_TEST_TOKEN")
    monkeypatch.setenv("AMIDKD_TEST_TOKEN", "open sesame")
    assert len(client(token_variable="AMIDKD_TEST_TOKEN")(PROMPTS)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "localhost:8000"}, "is no address"),
        ({"url": "http://localhost:none"}, "is no address"),
        ({"url": "http://localhost:8000/v1/"}, "leave out the /v1"),
        ({"url": "http://127.0.0.1:9", "retries": 1}, "GET /health failed 2 times"),
        ({"weight_push": "nccl"}, "weight_push: nccl needs the student on a CUDA device"),
        ({"temperature": 0.001}, "the least that vLLM samples with"),
        ({"eos_ids": (VOCABULARY,)}, "EOS ids"),
        ({"vocab_size": HEAD + 1}, "above the 20 ids"),
    ],
)
def test_what_cannot_be_is_said_before_work_starts(client, changes, message) -> None:
    with pytest.raises(SettingError, match=message):
        client(**changes)


def test_a_server_with_a_smaller_vocabulary_or_context_or_none_of_the_pages(served, client, tmp_path) -> None:
    larger = make_model(width=16, layers=1, seed=0, padded_vocab=HEAD + 5)
    with pytest.raises(SettingError, match="out of vocabulary"):
        client(larger, vocab_size=HEAD + 1)
    short = StandIn(served, context=12)
    with pytest.raises(SettingError, match="holds 12 tokens"):
        client(url=short.url)
    short.stop()
    tight = StandIn(served, context=13)
    with pytest.raises(SettingError, match="prompt 0 has 3 tokens and its answer up to 12, but vLLM holds 13"):
        client(url=tight.url)(PROMPTS)
    tight.stop()


def test_prompts_that_fit_nowhere(client) -> None:
    generator = client()
    for tokens, message in (([], "is empty"), ([5] * 64, "leaves no room"), ([HEAD], "outside the model's")):
        with pytest.raises(SettingError, match=message):
            generator(Prompts([tokens], [12], [0], 0))
    (cut,) = client(eos_ids=())(Prompts([[5] * 60], [12], [0], 0))
    assert len(cut) == 4


def test_without_a_push_the_tokenizers_must_agree(stand_in, client, tmp_path) -> None:
    generator = client(weight_push="none")
    generator.update_weights(9)
    assert stand_in.loaded == []
    assert stand_in.calls["/collective_rpc"] == 0

    class Other:
        def encode(self, text: str, **_: Any) -> list[int]:
            return [1, 2, 3]

    with pytest.raises(SettingError, match="another tokenizer"):
        client(weight_push="none", tokenizer=Other())


def test_a_server_without_its_development_pages_is_told(stand_in, client, monkeypatch) -> None:
    generator = client()
    monkeypatch.setattr(stand_in, "_reload", lambda _: (_ for _ in ()).throw(WrongError(404, "Not Found")))
    with pytest.raises(GenerationError, match="VLLM_SERVER_DEV_MODE=1"):
        generator.update_weights(1)
