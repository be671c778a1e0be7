"""Eight clients, a server that is killed, clients that are killed, answers that are damaged: no signal of other tokens.

Each client checks every signal against the live teacher's, which it has beside it, and counts the steps that it made.
"""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import SynchronizedArray
from pathlib import Path

import pytest
import torch

from amidkd.config import LiveTeacher as LiveTeacherConfig
from amidkd.config import ServedTeacher as ServedTeacherConfig
from amidkd.errors import TeacherError
from amidkd.signals import TopK
from amidkd.teachers import LiveTeacher, make_live, make_teacher
from amidkd.teachers.served import meeting
from amidkd.teachers.truncation import truncated
from serving_world import VOCABULARY, damaging, free_port, random_batch, save_teacher, started, wait_until
from tiny_world import make_tokenizer

CLIENTS = 8
KILLED = 2
STEPS = 12
"""For each time that the server is killed."""
WRONG, STOPPED = 3, 4


def damage(seed: int) -> Callable[[str, bytes], "bytes | int | None"]:
    """One answer in five is cut off, changed, lost, or the answer to somebody else."""
    numbers, lock, others = random.Random(seed), threading.Lock(), [b"nothing yet"]

    def harm(path: str, content: bytes) -> "bytes | int | None":
        with lock:
            kind = numbers.randrange(20)
            other, others[0] = others[0], content if path == "/score" else others[0]
            place = numbers.randrange(len(content))
        if kind == 0:
            return place
        if kind == 1:
            return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        return {2: None, 3: other}.get(kind, content)

    return harm


def learn(
    number: int, url: str, live: LiveTeacher, steps: "SynchronizedArray[int]", enough: Callable[[int], bool]
) -> int:
    """What a client does: steps until they are enough, each signal checked before it counts."""
    form = "hidden" if number % 2 else "top_k"
    config = ServedTeacherConfig(url=url, format=form, top_k=6, batch_rows=2, connections=2, retries=60, timeout=5)
    try:
        teacher = make_teacher(config, student_tokenizer=make_tokenizer())
        batch = random_batch(1000 * number)
        while not enough(steps[number]):
            following = random_batch(1000 * number + steps[number] + 1)
            teacher.expect([batch, following])
            found, wanted = teacher.signal(batch), live.signal(batch)
            if isinstance(found, TopK):
                wanted = truncated(wanted, 6, vocab_size=VOCABULARY)
            name = "log_probs" if isinstance(found, TopK) else "states"
            mine, theirs = getattr(found, name), getattr(wanted, name)
            if mine.shape != theirs.shape or not torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4):
                return WRONG
            steps[number] += 1
            batch = following
            # The student's own work.
            time.sleep(0.15)
    except TeacherError:
        return STOPPED
    return 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="clients are made by fork")
@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.full)])
def test_no_step_ever_uses_a_signal_of_other_tokens(
    kills: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, port = save_teacher(tmp_path / "teacher"), free_port()
    live = make_live(LiveTeacherConfig(model=str(folder)), student_tokenizer=make_tokenizer())
    inner = meeting._wait
    monkeypatch.setattr(meeting, "_wait", lambda closing, seconds: inner(closing, min(seconds, 4) / 8))
    fork = multiprocessing.get_context("fork")
    steps = fork.Array("i", CLIENTS)
    server, count = started(folder, port), kills * STEPS
    # Clients differ in speed by what was damaged for them: without this the first is done before the last has begun.
    last_kill_was = fork.Event()
    with damaging(port, damage(kills)) as url:
        clients = [
            fork.Process(
                target=lambda number=number: os._exit(
                    learn(number, url, live, steps, lambda made: made >= count and last_kill_was.is_set())
                )
            )
            for number in range(CLIENTS)
        ]
        try:
            for client in clients:
                client.start()
            for kill in range(kills):
                enough = kill * STEPS + 2
                wait_until(
                    lambda enough=enough: (
                        min(list(steps)[KILLED:]) >= enough or not all(client.is_alive() for client in clients[KILLED:])
                    ),
                    seconds=90,
                )
                server.send_signal(signal.SIGKILL)
                server.wait()
                for client in clients[:KILLED]:
                    client.kill()
                server = started(folder, port)
            last_kill_was.set()
            for client in clients:
                client.join(60)
            codes = [client.exitcode for client in clients]
            assert codes[:KILLED] == [-signal.SIGKILL] * KILLED
            assert codes[KILLED:] == [0] * (CLIENTS - KILLED)
            assert min(list(steps)[KILLED:]) >= count
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        finally:
            server.kill()
            for client in clients:
                client.kill()
