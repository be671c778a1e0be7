"""`amidkd serve` takes what it can answer, refuses the rest with a 4xx, and nobody suffers for another client."""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from amidkd.serving.worker import Worker
from amidkd.teachers.served.protocol import BINARY, PROTOCOL, ScoredRow, Wish, open_sealed, pack_request
from serving_world import Serving, serving, wait_until

WISH = Wish("top_k", 4, 17)
ROW = ScoredRow(torch.tensor([1, 5, 6, 7]), torch.tensor([0, 2]))
FACTS = {"protocol": PROTOCOL, "format": "top_k", "top_k": 4, "vocab_size": 17}
LIMITS = {"max_rows": 8, "max_tokens": 16, "max_top_k": 12, "max_request_mb": 0.01, "max_answer_mb": 0.001}


def ask(
    server: Serving, body: bytes | Iterator[bytes] | None, *, method: str = "POST", path: str = "/score", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, body, {"Content-Type": BINARY, **headers})
    answer = connection.getresponse()
    result = answer.status, answer.read(), {key.lower(): value for key, value in answer.getheaders()}
    connection.close()
    return result


def good(server: Serving) -> None:
    status, content, _ = ask(server, pack_request([ROW], WISH))
    assert status == 200
    tensors, facts = open_sealed("score", content)
    assert tensors["ids"].shape == (2, 4)
    assert facts["fingerprint"] == server.model.teacher.fingerprint()


def raw(facts: Any = FACTS, **tensors: torch.Tensor) -> bytes:
    parts = {
        "tokens": torch.tensor([1, 5, 6, 7]), "lengths": torch.tensor([4]), "places": torch.tensor([0, 2]),
        "counts": torch.tensor([2]),
    }  # fmt: skip
    whole = {name: tensor.to(torch.int32) for name, tensor in parts.items()} | tensors
    return save(whole, {"facts": facts if isinstance(facts, str) else json.dumps(facts)})


def head(length: int) -> bytes:
    return f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {BINARY}\r\nContent-Length: {length}\r\n\r\n".encode()


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


GARBAGE: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 400, "safetensors"),
    "text": (b"hello", 400, "safetensors"),
    "a header that promises more": ((2**40).to_bytes(8, "little") + b"{}", 400, "safetensors"),
    "half a request": (raw()[:-3], 400, "safetensors"),
    "no facts": (save({"tokens": ints(1)}), 400, "safetensors"),
    "deep facts": (raw("[" * 3000), 400, "safetensors"),
    "facts that are a list": (raw([1]), 400, "mapping"),
    "another protocol": (raw({**FACTS, "protocol": PROTOCOL + 1}), 400, f"protocol {PROTOCOL + 1}"),
    "another format": (raw({**FACTS, "format": "all"}), 422, "format"),
    "k of 0": (raw({**FACTS, "top_k": 0}), 422, "top_k"),
    "k that is true": (raw({**FACTS, "top_k": True}), 422, "top_k"),
    "k over the limit": (raw({**FACTS, "top_k": 13}), 422, "at most 12"),
    "k over the vocabulary": (raw({**FACTS, "top_k": 5, "vocab_size": 4}), 422, "at most 4"),
    "a vocabulary beyond the head": (raw({**FACTS, "vocab_size": 25}), 422, "24 ids"),
    "another tensor": (raw(more=ints(1)), 400, "tensors"),
    "floats": (raw(tokens=torch.rand(4)), 422, "int32"),
    "a matrix": (raw(tokens=ints(1, 5, 6, 7)[None]), 422, "one dimension"),
    "no row": (raw(tokens=ints(), lengths=ints(), places=ints(), counts=ints()), 422, "at least one"),
    "a row of one token": (raw(tokens=ints(1), lengths=ints(1)), 422, "two tokens"),
    "no place": (raw(places=ints(), counts=ints(0)), 422, "one place"),
    "a negative length": (raw(lengths=ints(6, -2), counts=ints(1, 1)), 422, "two tokens"),
    "lengths that do not add up": (raw(lengths=ints(5)), 422, "add up"),
    "a place at the end": (raw(places=ints(0, 3)), 422, "rise"),
    "places that fall": (raw(places=ints(2, 0)), 422, "rise"),
    "a negative place": (raw(places=ints(-1, 2)), 422, "rise"),
    "a token beyond the vocabulary": (raw(tokens=ints(1, 17, 6, 7)), 422, "token 17"),
    "a negative token": (raw(tokens=ints(1, -3, 6, 7)), 422, "token -3"),
    "a long row": (pack_request([ScoredRow(torch.ones(17).long(), torch.tensor([0]))], WISH), 413, "at most 16"),
    "many rows": (pack_request([ROW] * 9, WISH), 413, "at most 8"),
    "a large answer": (
        pack_request([ScoredRow(torch.ones(16).long(), torch.arange(15))] * 8, Wish("top_k", 12, 17)), 413, "answer",
    ),
    "a large request": (bytes(20_000), 413, "max_request_mb"),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(teacher_folder: Path) -> Iterator[Serving]:
    with serving(teacher_folder, **LIMITS) as running:
        yield running


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused_and_changes_nothing(server: Serving, name: str) -> None:
    body, wanted, message = GARBAGE[name]
    status, content, _ = ask(server, body)
    assert (status, message in json.loads(content)["detail"]) == (wanted, True), content
    good(server)


def test_size_is_bounded_without_a_length_too(server: Serving) -> None:
    status, content, _ = ask(server, (bytes(1000) for _ in range(20)))
    assert status == 413, content
    good(server)


def test_ways_that_do_not_exist(server: Serving) -> None:
    assert ask(server, None, method="GET")[0] == 405
    assert ask(server, None, method="GET", path="/docs")[0] == 404
    assert ask(server, raw(), **{"Content-Type": "text/plain"})[0] == 415
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(b"\x16\x03\x01 no http\r\n\r\n")
        assert b" 400 " in line.recv(1000)
    good(server)


def test_a_token_is_asked_for_where_there_is_one(teacher_folder: Path) -> None:
    with serving(teacher_folder, token="secret") as running:
        assert ask(running, None, method="GET", path="/health")[0] == 200
        for path in ("/info", "/tokenizer", "/head"):
            assert ask(running, None, method="GET", path=path)[0] == 401
            assert ask(running, None, method="GET", path=path, Authorization="Bearer secret")[0] == 200
        for wrong in ("", "secret", "Bearer secre", "Bearer secrets", "Bearer \xe9"):
            status, _, headers = ask(running, raw(), Authorization=wrong)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert ask(running, raw(), Authorization="Bearer secret")[0] == 200


def test_a_head_of_an_unknown_kind_is_not_sent(teacher_folder: Path) -> None:
    with serving(teacher_folder) as running:
        running.model.teacher.backbone.reason = "its head is odd"
        del running.model.__dict__["info"], running.model.__dict__["_signal"]
        status, content, _ = ask(running, pack_request([ROW], Wish("hidden", 0, 17)))
        assert status == 422
        assert b"its head is odd" in content
        assert ask(running, None, method="GET", path="/head")[0] == 404
        good(running)


class Gate:
    """Holds the model back until it is opened."""

    def __init__(self, running: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.batches = threading.Event(), []
        inner = running.model.teacher.signal

        def signal(sequences: Any) -> Any:
            self.batches.append(sequences)
            assert self.opened.wait(30)
            return inner(sequences)

        monkeypatch.setattr(running.model.teacher, "signal", signal)


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    return thread, results


def test_a_full_queue_says_come_back_later(teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(teacher_folder, queue=2) as running:
        gate = Gate(running, monkeypatch)
        waiting = [in_thread(lambda: ask(running, raw())[0])]
        wait_until(lambda: len(gate.batches) == 1)
        waiting += [in_thread(lambda: ask(running, raw())[0])]
        wait_until(lambda: running.worker._queue.qsize() == 1)
        status, _, headers = ask(running, raw())
        assert (status, headers["retry-after"]) == (503, "1")
        gate.opened.set()
        for thread, results in waiting:
            thread.join()
            assert results == [200]
        good(running)


def test_requests_of_several_clients_are_one_batch(teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(teacher_folder) as running:
        gate = Gate(running, monkeypatch)
        first, _ = in_thread(lambda: ask(running, raw()))
        wait_until(lambda: len(gate.batches) == 1)
        others = [in_thread(lambda: ask(running, raw()))[0] for _ in range(3)]
        wait_until(lambda: running.worker._queue.qsize() == 3)
        gate.opened.set()
        for thread in (first, *others):
            thread.join()
        assert [batch.tokens_BT.shape[0] for batch in gate.batches] == [1, 3]


def test_a_client_that_goes_away_is_not_worked_for(teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(teacher_folder) as running:
        gate = Gate(running, monkeypatch)
        first, results = in_thread(lambda: ask(running, raw())[0])
        wait_until(lambda: len(gate.batches) == 1)
        body = raw()
        with socket.create_connection(("127.0.0.1", running.port)) as line:
            line.sendall(head(len(body)) + body)
            wait_until(lambda: running.worker._queue.qsize() == 1)
        future = running.worker._queue.get_nowait()
        running.worker._queue.put(future)
        wait_until(lambda: future.future.cancelled())
        gate.opened.set()
        first.join()
        assert results == [200]
        good(running)
        assert len(gate.batches) == 2


def test_an_answer_that_takes_too_long_is_given_up(teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(teacher_folder, timeout=0.3) as running:
        gate = Gate(running, monkeypatch)
        assert ask(running, raw())[0] == 503
        with socket.create_connection(("127.0.0.1", running.port)) as line:
            line.sendall(
                f"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: {BINARY}\r\nContent-Length: 9\r\n\r\n".encode()
            )
            assert b" 408 " in line.recv(1000)
        gate.opened.set()


def test_a_row_that_fails_fails_alone(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = server.model.teacher.signal

    def signal(sequences: Any) -> Any:
        if bool((sequences.tokens_BT == 13).any()):
            raise RuntimeError("out of memory")
        return inner(sequences)

    monkeypatch.setattr(server.model.teacher, "signal", signal)
    worker = Worker(server.model.teacher, batch_tokens=1000)
    bad = ScoredRow(torch.tensor([1, 13, 6]), torch.tensor([1]))
    jobs = [worker.submit([row], WISH) for row in (ROW, bad, ROW)]
    assert jobs[0].result()["ids"].shape == jobs[2].result()["ids"].shape == (2, 4)
    with pytest.raises(RuntimeError, match="out of memory"):
        jobs[1].result()
    worker.close()
    status, content, _ = ask(server, pack_request([bad], WISH))
    assert status == 500
    assert b"out of memory" in content
    good(server)


def test_a_rows_answer_does_not_depend_on_its_batch(server: Serving) -> None:
    numbers = torch.Generator().manual_seed(0)
    lengths = (3, 16, 4, 9, 16)
    rows = [ScoredRow(torch.randint(0, 17, (n,), generator=numbers), torch.arange(n - 1)) for n in lengths]
    worker = Worker(server.model.teacher, batch_tokens=40)
    together = worker.submit(rows, Wish("top_k", 17, 17)).result()
    alone = [worker.submit([row], Wish("top_k", 17, 17)).result() for row in rows]
    worker.close()
    for name in ("ids", "log_probs"):
        found = together[name].split([n - 1 for n in lengths])
        for one, other in zip(found, alone, strict=True):
            torch.testing.assert_close(one, other[name], rtol=1e-5, atol=1e-5)
