"""The live page as browsers and others meet it: one page, events of what changed, on loopback alone."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from watched_folders import begin, finish, log, trial, write_sweep

from amidkd.cli import main
from amidkd.record import RunFolder, write_json_lines
from amidkd.watch.page import LivePage
from amidkd.watch.run import follow
from amidkd.watch.runs import RunFollower
from amidkd.watch.server import PageServer


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = begin(tmp_path / "run")
    log(folder.path, range(1, 6))
    return folder


@pytest.fixture
def served(folder) -> Iterator[PageServer]:
    page = LivePage(RunFollower(folder.path), tick=0.05)
    server = PageServer(page, 0)
    threads = [threading.Thread(target=run, daemon=True) for run in (server.serve_forever, page.run)]
    for thread in threads:
        thread.start()
    yield server
    page.close()
    server.shutdown()
    server.server_close()


def get(server: PageServer, path: str, **headers: str) -> tuple[int, str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.headers


class Reader:
    """One browser's stream of events."""

    def __init__(self, server: PageServer, since: str = "", **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
        self.connection.request("GET", f"/events?since={since}", headers=headers)
        self.answer = self.connection.getresponse()

    def next(self) -> tuple[str, dict[str, Any]]:
        name = ""
        while True:
            line = self.answer.readline().decode()
            assert line, "the stream has ended"
            if line.startswith("id: "):
                name = line[4:].strip()
            elif line.startswith("data: "):
                return name, json.loads(line[6:])

    def until(self, word: str) -> dict[str, Any]:
        while True:
            _, event = self.next()
            if word in json.dumps(event, ensure_ascii=False):
                return event


def test_the_page_holds_everything_at_once(served, folder) -> None:
    status, text, headers = get(served, "/")
    assert status == 200
    for part in (
        "Under way (distill: step 5 of 40",
        "KL(teacher‖student)",
        "<svg",
        "<h2>Curves</h2>",
        "4.0 times as many",
    ):
        assert part in text
    assert "connect-src 'self'" in text
    assert headers["Cache-Control"] == "no-store"
    assert "src=" not in text.replace("'self'", "")


def test_only_what_changed_is_sent_and_to_every_reader(served, folder) -> None:
    readers = [Reader(served), Reader(served)]
    names = []
    for reader in readers:
        name, first = reader.next()
        names.append(name)
        assert {"status", "warnings", "now", "trials", "curves", "samples", "facts"} <= set(first["parts"])
    assert readers[0].answer.headers["Content-Type"].startswith("text/event-stream")
    log(folder.path, range(6, 11))
    for reader in readers:
        event = reader.until("step 10 of 40")
        assert event["title"] == "25 % · run"
        assert "samples" not in event["parts"]
    write_json_lines(folder.samples_file, [{"prompt": "<red>", "references": [], "answers": {"student": "cat"}}])
    assert "&lt;red&gt;" in readers[1].until("red")["parts"]["samples"]
    # A reader that comes back gets what it missed, and no more.
    later = Reader(served, since="elsewhere-1", **{"Last-Event-ID": names[0]})
    assert "samples" in later.next()[1]["parts"]
    finish(folder, evaluation={"student": {"metrics": {}}})
    assert "amidkd report" in readers[0].until("done")["parts"]["status"]


def test_curves_are_drawn_again_but_not_all_the_time(folder, monkeypatch) -> None:
    drawn, clock = [], [0.0]

    def slow(lines: Any) -> list[Any]:
        drawn.append(clock[0])
        clock[0] += 0.05
        return []

    monkeypatch.setattr("amidkd.watch.page.curves_of_run", slow)
    monkeypatch.setattr("amidkd.watch.page.time", SimpleNamespace(monotonic=lambda: clock[0], time_ns=time.time_ns))
    page = LivePage(RunFollower(folder.path))
    for step in range(6, 26):
        log(folder.path, range(step, step + 1))
        page.look()
        clock[0] += 0.125
    # A drawing that takes 0.05 s may come once in a second and a little.
    assert len(drawn) == 3
    assert drawn[1] - drawn[0] >= 1.05
    clock[0] += 5
    page.look()
    assert len(drawn) == 4
    clock[0] += 5
    page.look()
    assert len(drawn) == 4, "nothing new, nothing drawn"
    log(folder.path, range(26, 27))
    page.look()
    log(folder.path, range(27, 28))
    finish(folder)
    page.look()
    assert len(drawn) == 6, "a run that is over is drawn at once"


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        ("/", "rebound.example:80", 421),
        ("/events", "rebound.example", 421),
        ("/../../etc/passwd", None, 404),
        ("/x", None, 404),
    ],
)
def test_others_are_turned_away(served, path, host, status) -> None:
    found, text, _ = get(served, path, **({"Host": host} if host else {}))
    assert found == status
    assert served.url in text


def test_localhost_is_this_machine_too(served) -> None:
    assert get(served, "/", Host=f"localhost:{served.server_port}")[0] == 200


def test_it_listens_on_loopback_alone(served) -> None:
    assert served.server_address[0] == "127.0.0.1"


def test_a_reader_that_leaves_is_no_error(served, folder, capsys) -> None:
    reader = Reader(served)
    reader.next()
    reader.answer.close()
    reader.connection.close()
    for step in range(6, 12):
        log(folder.path, range(step, step + 1))
        time.sleep(0.05)
    assert get(served, "/")[0] == 200
    assert capsys.readouterr().err == ""


def test_a_sweep_has_a_table_that_sorts_and_a_picture(tmp_path) -> None:
    trials = [trial(n, "complete", float(n), values={"nll": 0.5 - n / 10}, seconds=3.0) for n in range(3)]
    write_sweep(tmp_path, trials, best=[2], stopped="every combination was tried")
    text = LivePage(follow(tmp_path)).html()
    assert "data-sort" in text
    assert "done, best" in text
    assert text.count("<figure>") == 1


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_is_none_is_refused(tmp_path, capsys, port) -> None:
    assert main(["watch", str(tmp_path), "--port", port]) == 2
    assert "--port: must be within 0 to 65535" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(tmp_path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["watch", str(tmp_path), "--port", str(port)]) == 2
    assert f"--port: {port} is in use on this machine; leave --port out" in capsys.readouterr().err


def test_ctrl_c_ends_the_page_with_readers_on_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "amidkd", "watch", str(tmp_path / "run")]
    with (
        # In a script's background, where tests may run too, Ctrl-C is ignored from the start.
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as watch,
        ExitStack() as last,
    ):
        # Else a failure below would wait for the process for ever.
        last.callback(watch.kill)
        assert watch.stdout is not None
        assert watch.stderr is not None
        first = watch.stdout.readline()
        assert first.startswith("Watching at http://127.0.0.1:")
        port = int(first.rstrip("/\n").rsplit(":", 1)[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/events")
        assert b"id: " in connection.getresponse().readline()
        watch.send_signal(signal.SIGINT)
        assert watch.wait(timeout=20) == 0
        assert watch.stderr.read() == ""
        connection.close()
