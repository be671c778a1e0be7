"""A vLLM server as a teacher: what it says is the live teacher's, and whatever it says wrongly is found out."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from prompt_scorer import Scorer

from amidkd.config import ServedTeacher as ServedConfig
from amidkd.data import Example, Sequences, collate
from amidkd.errors import SettingError, TeacherError
from amidkd.signals import TopK
from amidkd.teachers import LiveTeacher, Teacher
from amidkd.teachers.served.protocol import ScoredRow
from amidkd.teachers.served.vllm import VllmTeacher, connect_vllm
from amidkd.teachers.served.vllm_answer import implied_tail, read_scores
from amidkd.teachers.truncation import truncated
from tiny_world import make_model, make_tokenizer

V, K, BOS = 17, 5, 1


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(width=16, layers=1, seed=0, padded_vocab=V + 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def server(model: Any) -> Iterator[Scorer]:
    # Its own copy: the live teacher runs in this thread meanwhile, and a model is for one thread at a time.
    scorer = Scorer(copy.deepcopy(model))
    yield scorer
    scorer.stop()
    assert scorer.trouble == []


Connect = Callable[..., VllmTeacher]


@pytest.fixture
def connect(server: Scorer, folder: Path) -> Iterator[Connect]:
    made = []

    def connect(**settings: Any) -> VllmTeacher:
        given = {"url": server.url, "model": str(folder), "top_k": K, "retries": 2, "batch_rows": 2, **settings}
        config = ServedConfig(api="vllm", **given)
        made.append(connect_vllm(config, student_tokenizer=make_tokenizer(), pause=lambda seconds: None))
        return made[-1]

    yield connect
    for teacher in made:
        teacher.close()


def batch(seed: int = 0, rows: int = 5) -> Sequences:
    """Rows of several lengths; of the third nothing is supervised, of the fourth not the end."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for row in range(rows):
        tokens = torch.randint(5, V, (4 + row,), generator=draw).tolist()
        targets = [False, *[row != 2] * (2 + row), row not in (2, 3)]
        found.append(Example(tuple(tokens), tuple(targets), row))
    return collate(found, pad_id=0)


def assert_same(found: TopK, wanted: TopK) -> None:
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.ids, wanted.ids)
    torch.testing.assert_close(found.log_tail, wanted.log_tail, rtol=1e-3, atol=1e-3)


@pytest.fixture
def live(model: Any) -> Callable[[Sequences], TopK]:
    """Of all rows of the head, as the server, which knows nothing of a shared vocabulary."""
    teacher = LiveTeacher(model, make_tokenizer(), vocab_size=V)
    return lambda sequences: truncated(teacher.signal(sequences), K, vocab_size=V + 3)


def test_it_says_what_the_live_teacher_says(connect: Connect, server: Scorer, live: Any) -> None:
    teacher = connect()
    assert isinstance(teacher, Teacher)
    assert teacher.vocab_size == V
    sequences = batch()
    assert_same(teacher.signal(sequences), live(sequences))
    sent = [prompt for body in server.bodies[1:] for prompt in body["prompt"][1:]]
    tokens, lengths = sequences.tokens_BT.tolist(), (4, 5, 6, 6, 8)
    # Nothing is asked of the third row, nor of the fourth's last token.
    assert sorted(sent) == sorted(tokens[row][: lengths[row]] for row in (0, 1, 3, 4))
    assert max(len(body["prompt"]) for body in server.bodies) == 3
    empty = collate([Example((5, 6), (False, False), 0)], pad_id=0)
    assert teacher.signal(empty).ids.shape == (0, K)


def test_k_of_the_whole_vocabulary_leaves_no_tail(connect: Connect, server: Scorer) -> None:
    server.max_logprobs = V + 3
    signal = connect(top_k=1000).signal(batch())
    assert signal.ids.shape[1] == V
    assert (signal.log_tail.exp() < 1e-2).all()


def test_it_asks_ahead_and_once(connect: Connect, server: Scorer, live: Any) -> None:
    teacher = connect()
    now, following = batch(0), batch(1)
    asked = len(server.bodies)
    teacher.expect([now, following])
    assert_same(teacher.signal(batch(0)), live(now))
    teacher.expect([following])
    assert_same(teacher.signal(following), live(following))
    assert len(server.bodies) == asked + 4
    assert teacher.statistics()["answers"] == 4


def test_what_goes_wrong_on_the_way_is_asked_again(connect: Connect, server: Scorer, live: Any) -> None:
    teacher = connect(connections=1)
    server.faults = ["truncate", "close", lambda choices: None, 500, 429]
    assert_same(teacher.signal(batch()), live(batch()))
    assert not server.faults


def test_a_server_that_is_gone_stops_the_run_and_is_asked_anew_after(
    connect: Connect, server: Scorer, live: Any
) -> None:
    teacher = connect()
    server.stop()
    teacher.expect([batch()])
    with pytest.raises(TeacherError, match=r"failed 3 times.*Start it again, then resume"):
        teacher.signal(batch())
    server.start()
    assert_same(teacher.signal(batch()), live(batch()))


def test_a_server_with_another_model_is_found_out(connect: Connect, server: Scorer) -> None:
    teacher = connect()
    server.stop()
    server.model = make_model(width=16, layers=1, seed=1, padded_vocab=V + 3)
    server.start()
    with pytest.raises(TeacherError, match="another model"):
        teacher.signal(batch())


def test_a_row_beyond_the_servers_context_is_refused_in_its_words(connect: Connect, server: Scorer) -> None:
    teacher = connect()
    server.context = 6
    with pytest.raises(SettingError, match="maximum context length is 6 tokens"):
        teacher.signal(batch())


def drop(choices: list[dict[str, Any]]) -> None:
    del choices[-1]["prompt_logprobs"][2]


def shift(choices: list[dict[str, Any]]) -> None:
    entries = choices[-1]["prompt_logprobs"]
    choices[-1]["prompt_logprobs"] = [entries[0], entries[2], entries[1], *entries[3:]]


def swap(choices: list[dict[str, Any]]) -> None:
    first, last = choices[0], choices[-1]
    first["index"], last["index"] = last["index"], first["index"]


def silent(choices: list[dict[str, Any]]) -> None:
    choices[-1]["prompt_logprobs"] = [None]


def thin(choices: list[dict[str, Any]]) -> None:
    entry = choices[-1]["prompt_logprobs"][1]
    for name in list(entry)[1:3]:
        del entry[name]


def heavy(choices: list[dict[str, Any]]) -> None:
    for said in choices[-1]["prompt_logprobs"][1].values():
        said["logprob"] = -0.5


def nothing(choices: list[dict[str, Any]]) -> None:
    choices[-1]["prompt_logprobs"][1] = {name: {} for name in choices[-1]["prompt_logprobs"][1]}


def fewer(choices: list[dict[str, Any]]) -> None:
    del choices[-1]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (drop, "positions came for"),
        (shift, "the server scores other tokens"),
        (swap, "tokens"),
        (silent, "does not score prompts"),
        (thin, f"and {K} were asked for"),
        (heavy, "no log-probabilities"),
        (nothing, "no log-probabilities by id"),
        (fewer, "choices came for"),
    ],
)
@pytest.mark.parametrize("echo", [True, False])
def test_an_odd_answer_is_never_used(connect: Connect, server: Scorer, fault: Any, message: str, echo: bool) -> None:
    teacher = connect()
    server.echo = echo
    server.always = fault
    with pytest.raises(TeacherError, match=message):
        teacher.signal(batch())


@pytest.mark.parametrize("echo", [True, False])
def test_a_server_that_adds_bos_is_refused_at_once(connect: Connect, server: Scorer, echo: bool) -> None:
    server.bos, server.echo = BOS, echo
    with pytest.raises(SettingError, match=r"put \[1\] before them" if echo else "it adds tokens, such as BOS"):
        connect()


def test_a_server_of_logits_is_refused_at_once(connect: Connect, server: Scorer) -> None:
    server.logits = True
    with pytest.raises(SettingError, match=r"no log-probabilities.*--logprobs-mode processed_logprobs"):
        connect()


def test_logits_far_below_zero_are_no_log_probabilities_either(connect: Connect, server: Scorer) -> None:
    def lower(choices: list[dict[str, Any]]) -> None:
        for choice in choices:
            for entry in choice["prompt_logprobs"][1:]:
                for said in entry.values():
                    said["logprob"] -= 20

    server.logits, server.always = True, lower
    with pytest.raises(SettingError, match="less than as many equal parts"):
        connect()


def test_k_beyond_what_the_server_allows_is_named_with_the_flag(connect: Connect, server: Scorer) -> None:
    server.max_logprobs = 4
    with pytest.raises(SettingError, match=r"teacher.top_k = 5 .*--max-logprobs 5"):
        connect()
    server.max_logprobs, server.context = 20, 3
    with pytest.raises(SettingError, match="maximum context length"):
        connect()


def test_the_model_must_be_told_apart(connect: Connect, server: Scorer) -> None:
    with pytest.raises(SettingError, match=r"served_name = 'other': .* serves an-adapter, served"):
        connect(served_name="other")
    server.names = ["served", "second"]
    with pytest.raises(SettingError, match=r"say which in teacher\.served_name"):
        connect()
    assert connect(served_name="served").fingerprint() != connect(served_name="served", top_k=3).fingerprint()
    server.names = []
    with pytest.raises(SettingError, match=r"say which in teacher\.served_name"):
        connect()


def test_the_tail_is_never_negative_and_empty_only_where_it_must_be() -> None:
    rounded = torch.tensor([[0.0, -20.0, -30.0], [1e-7, -16.0, -17.0], [-1.0, -2.0, -torch.inf], [-1.0, -1.5, -2.0]])
    tail = implied_tail(rounded.double(), torch.tensor([50000, 50000, 50000, 0]))
    assert tail[0].exp().item() == pytest.approx(50000 * torch.tensor(-30.0).exp().item())
    assert 0 < tail[1].exp().item() < 1.1e-6
    assert tail[2:].tolist() == [-torch.inf, -torch.inf]


def test_the_texts_own_token_is_left_out_beyond_k_and_minus_9999_is_nothing() -> None:
    """The first position's own token is its least likely; at the second −9999 stands for −∞."""
    entries = [
        None,
        {"9": {"logprob": -8.0, "rank": 7}, "3": {"logprob": -0.2, "rank": 1}, "4": {"logprob": -2.0, "rank": 2}},
        {"3": {"logprob": 0.0, "rank": 1}, "7": {"logprob": -9999.0, "rank": 2}},
    ]
    row = ScoredRow(torch.tensor([5, 9, 3]), torch.tensor([0, 1]))
    scores = read_scores({"prompt_logprobs": entries}, row, k=2)
    assert scores.ids.tolist() == [[3, 4], [3, 7]]
    assert scores.log_probs.tolist() == [[-0.2, -2.0], [0.0, -torch.inf]]
