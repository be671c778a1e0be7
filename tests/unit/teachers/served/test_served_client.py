"""The client of `amidkd serve` says what the live teacher says, or nothing: never a signal of other tokens."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from amidkd.config import LiveTeacher as LiveTeacherConfig
from amidkd.config import ServedTeacher as ServedTeacherConfig
from amidkd.data import Example, Sequences, collate
from amidkd.errors import SettingError, TeacherError
from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.models import load_tokenizer
from amidkd.signals import Hidden, Logits, TopK
from amidkd.teachers import LiveTeacher, Teacher, make_live, make_teacher
from amidkd.teachers.served import ServedTeacher, fetch_tokenizer, meeting
from amidkd.teachers.served.answers import read_info
from amidkd.teachers.served.protocol import PROTOCOL, checksum_of
from amidkd.teachers.truncation import truncated
from amidkd.transport import PassingError
from serving_world import VOCABULARY, Serving, damaging, free_port, random_batch, save_teacher, serving
from tiny_models import tiny_model
from tiny_world import make_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("served-client") / "teacher")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    with serving(folder) as running:
        yield running


@pytest.fixture(scope="module")
def live(folder: Path) -> LiveTeacher:
    return make_live(LiveTeacherConfig(model=str(folder)), student_tokenizer=make_tokenizer())


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = meeting._wait
    monkeypatch.setattr(meeting, "_wait", lambda closing, seconds: inner(closing, seconds / 500))


def joined(url: str, **settings: Any) -> ServedTeacher:
    config = ServedTeacherConfig(**{"url": url, "top_k": 5, "batch_rows": 2, "retries": 3, **settings})
    teacher = make_teacher(config, student_tokenizer=make_tokenizer())
    assert isinstance(teacher, ServedTeacher)
    return teacher


def same(found: Hidden | TopK, wanted: Hidden | TopK) -> None:
    names = ("ids", "log_probs", "log_tail") if isinstance(wanted, TopK) else ("states", "weight")
    assert type(found) is type(wanted)
    for name in names:
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 5, 100])
def test_top_k_is_the_live_teachers_truncated(server: Serving, live: LiveTeacher, top_k: int) -> None:
    teacher = joined(server.url, top_k=top_k)
    assert isinstance(teacher, Teacher)
    assert teacher.vocab_size == VOCABULARY
    for seed in range(3):
        batch = random_batch(seed)
        same(teacher.signal(batch), truncated(live.signal(batch), top_k, vocab_size=VOCABULARY))
    teacher.close()


@pytest.mark.parametrize("family", ["llama_untied", "gemma2", "cohere", "gptj"])
def test_hidden_is_exact_for_any_head(family: str, tmp_path: Path) -> None:
    folder = save_teacher(tmp_path / "teacher", model=tiny_model(family))
    live = make_live(LiveTeacherConfig(model=str(folder)), student_tokenizer=make_tokenizer())
    batch = random_batch(1)
    student = Logits(torch.randn(batch.token_count(), VOCABULARY, generator=torch.Generator().manual_seed(0)))
    objective = Objective(divergence=divergence("kl"), between="teacher||student")
    with serving(folder) as running:
        teacher = joined(running.url, format="hidden")
        losses = [
            distillation_loss(
                student=student,
                teacher=each.signal(batch),
                objective=objective,
                vocab_size=VOCABULARY,
                temperature=2.0,
            ).loss
            for each in (teacher, live)
        ]
        teacher.close()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)


def test_a_batch_without_supervised_tokens_is_not_sent(server: Serving) -> None:
    batch = collate([Example((1, 5), (False, False), row=0)], pad_id=0)
    for form in ("top_k", "hidden"):
        teacher = joined(server.url, format=form)
        signal = teacher.signal(batch)
        assert (signal.ids if isinstance(signal, TopK) else signal.states).shape[0] == 0
        assert teacher.statistics()["answers"] == 0
        teacher.close()


def test_what_is_expected_is_asked_once_and_ahead(server: Serving, live: LiveTeacher) -> None:
    teacher = joined(server.url, batch_rows=100)
    batches = [random_batch(seed) for seed in range(4)]
    for step in range(3):
        teacher.begin_step(step)
        teacher.expect([again(batch) for batch in batches[step : step + 2]])
        same(teacher.signal(batches[step]), truncated(live.signal(batches[step]), 5, vocab_size=VOCABULARY))
    assert teacher.statistics()["answers"] <= 4
    same(teacher.signal(batches[0]), truncated(live.signal(batches[0]), 5, vocab_size=VOCABULARY))
    teacher.close()
    with pytest.raises(TeacherError, match="closed"):
        teacher.signal(batches[1])


def again(batch: Sequences) -> Sequences:
    return Sequences.from_batch({name: tensor.clone() for name, tensor in batch.as_batch().items()})


def test_requests_stay_within_the_servers_limits(folder: Path, live: LiveTeacher) -> None:
    batch = random_batch(2, rows=9)
    with serving(folder, max_rows=3, max_request_mb=0.006, max_answer_mb=0.001) as running:
        teacher = joined(running.url, batch_rows=50, retries=0)
        same(teacher.signal(batch), truncated(live.signal(batch), 5, vocab_size=VOCABULARY))
        teacher.close()


def every_other(harm: Callable[[bytes], Any]) -> Callable[[str, bytes], Any]:
    count = iter(range(10_000))
    return lambda path, content: harm(content) if next(count) % 2 else content


def flipped(content: bytes) -> bytes:
    place = len(content) * 2 // 3
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


HARM: dict[str, Callable[[], Callable[[str, bytes], Any]]] = {
    "cut off": lambda: every_other(lambda content: len(content) // 2),
    "shorter, as if whole": lambda: every_other(lambda content: content[: len(content) // 2]),
    "one bit changed": lambda: every_other(flipped),
    "gone": lambda: every_other(lambda content: None),
    "empty": lambda: every_other(lambda content: b""),
    "a page in its place": lambda: every_other(lambda content: b"<html>busy</html>"),
}


@pytest.mark.parametrize("form", ["top_k", "hidden"])
@pytest.mark.parametrize("harm", HARM)
def test_damaged_answers_are_asked_for_again(server: Serving, live: LiveTeacher, harm: str, form: str) -> None:
    with damaging(server.port, HARM[harm]()) as url:
        teacher = joined(url, format=form, retries=8)
        for seed in range(4):
            wanted = live.signal(batch := random_batch(seed))
            same(teacher.signal(batch), wanted if form == "hidden" else truncated(wanted, 5, vocab_size=VOCABULARY))
        teacher.close()


@pytest.mark.parametrize("form", ["top_k", "hidden"])
def test_an_answer_to_another_question_of_the_same_shape(server: Serving, live: LiveTeacher, form: str) -> None:
    answers: list[bytes] = []

    def damage(path: str, content: bytes) -> bytes:
        answers.append(content)
        # Every other time what was said the time before: whole, of this model, and with a good checksum.
        return answers[-2] if path == "/score" and len(answers) % 2 else content

    first = random_batch(0)
    with damaging(server.port, damage) as url:
        teacher = joined(url, format=form, batch_rows=100)
        answers.clear()
        for shift in range(4):
            moved = first.as_batch() | {"input_ids": (first.tokens_BT + shift) % VOCABULARY}
            wanted = live.signal(batch := Sequences.from_batch(moved))
            same(teacher.signal(batch), wanted if form == "hidden" else truncated(wanted, 5, vocab_size=VOCABULARY))
        assert len(answers) > 4
        teacher.close()


@pytest.mark.parametrize("asked", ["/info", "/tokenizer", "/head"])
def test_meeting_takes_no_answer_to_another_question(server: Serving, live: LiveTeacher, asked: str) -> None:
    scored: list[bytes] = []
    swapped = 0

    def damage(path: str, content: bytes) -> bytes:
        nonlocal swapped
        if path == "/score":
            scored.append(content)
        elif path == asked and scored and swapped < 2:
            # Whole, of this model, and with a good checksum.
            swapped += 1
            return scored[0]
        return content

    with damaging(server.port, damage) as url:
        joined(url).close()
        teacher = joined(url, format="hidden")
        same(teacher.signal(batch := random_batch(0)), live.signal(batch))
        teacher.close()
    assert swapped == 2


def test_any_bit_of_what_the_server_says_of_itself_counts(server: Serving) -> None:
    content = json.dumps(server.model.info, separators=(",", ":")).encode()
    assert read_info(content, {}, url=server.url) == server.model.info
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        # Another spelling of the same facts would do; other facts would not.
        with contextlib.suppress(PassingError):
            assert read_info(bytes(changed), {}, url=server.url) == server.model.info


def test_a_server_that_goes_on_harming_is_an_error(server: Serving) -> None:
    harmful = False
    with damaging(server.port, lambda path, content: flipped(content) if harmful else content) as url:
        teacher = joined(url)
        harmful = True
        with pytest.raises(TeacherError, match=r"failed 4 times.*checksum"):
            teacher.signal(random_batch(0))
        harmful = False
        assert teacher.signal(random_batch(0))
        teacher.close()


def test_another_model_at_the_same_address_is_an_error(server: Serving, tmp_path: Path) -> None:
    with serving(save_teacher(tmp_path / "other", seed=1)) as other, damaging(server.port, lambda p, c: c) as url:
        teacher = joined(url)
        fingerprint = teacher.fingerprint()
        teacher._client._server._port = other.port
        with pytest.raises(TeacherError, match="another model"):
            teacher.signal(random_batch(0))
        teacher.close()
        changed = joined(other.url)
        assert changed.fingerprint() != fingerprint
        changed.close()


def test_what_the_server_refuses_in_training_stops_with_a_checkpoint(server: Serving) -> None:
    teacher = joined(server.url)
    teacher._client._server._path = "/elsewhere"
    with pytest.raises(TeacherError, match="404"):
        teacher.signal(random_batch(0))
    teacher.close()


def test_settings_that_the_server_cannot_meet(folder: Path, tmp_path: Path) -> None:
    with serving(folder, max_top_k=4, max_tokens=8) as running:
        with pytest.raises(SettingError, match=r"teacher.top_k: 5.*at most 4.*serve.max_top_k"):
            joined(running.url)
        teacher = joined(running.url, top_k=4)
        with pytest.raises(SettingError, match=r"data.max_length: .*takes 8"):
            teacher.signal(random_batch(0))
        with pytest.raises(SettingError, match="token 20 lies beyond the 17 ids"):
            teacher.signal(collate([Example((1, 20), (False, True), row=0)], pad_id=0))
        teacher.close()
    other = make_tokenizer()
    other.add_tokens(["zebra"])
    shutil.copytree(folder, tmp_path / "other")
    tokens = (tmp_path / "other" / "tokenizer.json").read_text().replace('"red"', '"rot"')
    (tmp_path / "other" / "tokenizer.json").write_text(tokens)
    with serving(tmp_path / "other") as running, pytest.raises(SettingError, match="different tokenizers"):
        joined(running.url)


def test_what_is_no_such_server(server: Serving) -> None:
    with pytest.raises(TeacherError, match=r"failed 2 times.*Is the server running"):
        joined(f"http://127.0.0.1:{free_port()}", retries=1)
    later = server.model.info | {"protocol": PROTOCOL + 1}
    without = {name: value for name, value in server.model.info.items() if name != "checksum"}
    others = {
        "no `amidkd serve`": lambda path, content: b'{"status": "ok"}',
        "speaks protocol 1": lambda path, content: json.dumps(without | {"protocol": 1}).encode(),
        "speaks protocol 3": lambda path, content: json.dumps(later | {"checksum": checksum_of(later)}).encode(),
    }
    for message, damage in others.items():
        with damaging(server.port, damage) as url, pytest.raises(SettingError, match=message):
            joined(url)


def test_the_token_is_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(folder, token="secret") as running:
        with pytest.raises(SettingError, match=r"401.*bearer token"):
            joined(running.url)
        with pytest.raises(SettingError, match="no variable TEACHER_TOKEN"):
            joined(running.url, token_variable="TEACHER_TOKEN")
        monkeypatch.setenv("TEACHER_TOKEN", "secret")
        teacher = joined(running.url, token_variable="TEACHER_TOKEN")
        assert teacher.signal(random_batch(0))
        teacher.close()


def test_the_servers_tokenizer_is_fetched(server: Serving) -> None:
    found = load_tokenizer(fetch_tokenizer(ServedTeacherConfig(url=server.url)))
    assert found.get_vocab() == make_tokenizer().get_vocab()
