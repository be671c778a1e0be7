"""The live page in a real browser, while a real run trains, is killed, and goes on to its end."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from amidkd.record import RunFolder, write_json_lines
from amidkd.watch.page import LivePage
from amidkd.watch.run import follow
from amidkd.watch.server import PageServer
from tiny_world import WORDS, make_model, make_tokenizer

SECONDS = 120


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """A run of some seconds, slowed by its many log lines and checkpoints."""
    make_model(width=16, layers=2, seed=2, padded_vocab=24).save_pretrained(tmp_path / "teacher")
    make_model(width=8, layers=1, seed=3, padded_vocab=24).save_pretrained(tmp_path / "student")
    for name in ("teacher", "student"):
        make_tokenizer().save_pretrained(tmp_path / name)
    rows = [{"prompt": f"{a} {b}", "completion": f"{b} {a}"} for a in WORDS for b in WORDS]
    write_json_lines(tmp_path / "train.jsonl", rows[:100])
    write_json_lines(tmp_path / "valid.jsonl", rows[100:])
    tree = {
        "student": {"model": str(tmp_path / "student")},
        "teacher": str(tmp_path / "teacher"),
        "data": {
            "train": str(tmp_path / "train.jsonl"),
            "validation": str(tmp_path / "valid.jsonl"),
            "prompt_template": "<s> {prompt} <sep>",
            "generation": {"max_new_tokens": 6},
        },
        "training": {"max_steps": 250, "logging_steps": 1, "save_steps": 60, "save_total_limit": 2, "use_cpu": True},
        "evaluation": {"sampling_seeds": [1], "max_new_tokens": 6, "after_training": True},
        "output": str(tmp_path / "run"),
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[PageServer]:
    page = LivePage(follow(tmp_path / "run"), tick=0.2)
    server = PageServer(page, 0)
    for run in (server.serve_forever, page.run):
        threading.Thread(target=run, daemon=True).start()
    yield server
    page.close()
    server.shutdown()
    server.server_close()


@pytest.fixture
def live(started_browser: Any, served: PageServer) -> Iterator[Any]:
    """The browser on the live page; nothing is asked of any other address, and nothing is complained of."""
    driver = started_browser.driver
    driver.get("about:blank")
    driver.get_log("browser")
    started_browser.requests()
    started_browser.size(1200)
    started_browser.scheme("light")
    driver.get(served.url)
    yield started_browser
    asked = [url for url in started_browser.requests() if not url.startswith(("data:", "about:"))]
    assert all(url.startswith(served.url) for url in asked)
    assert driver.get_log("browser") == []
    driver.get("about:blank")


def train(run_file: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "amidkd", "distill", str(run_file), *overrides]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


def state_is(state: str) -> str:
    return f"document.querySelector('.state').textContent === '{state}'"


def test_a_run_is_followed_from_before_its_start_to_its_end(live, run_file, tmp_path) -> None:
    live.run("window.notReloaded = true")
    assert "waiting for the run to begin" in live.one("#part-status").text
    first = train(run_file)
    try:
        live.wait(state_is("running"))
        live.wait("document.querySelectorAll('#part-curves svg').length >= 6")
        before = live.run("return document.querySelector('#part-curves').innerHTML")
        live.wait("document.querySelectorAll('#part-now dd').length >= 8")
        live.wait("document.querySelector('#part-status progress').value > 60")
        assert live.run("return document.title").endswith("% · run")
        assert json.loads(RunFolder(tmp_path / "run").progress_file.read_text())["steps"] == 250
        assert live.run("return document.documentElement.scrollWidth") <= 1200
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    live.wait(state_is("stopped"))
    assert "its process has ended" in live.one("#part-status").text
    assert "training.resume_from_checkpoint=true" in live.one("#part-status code").text
    again = train(run_file, "training.resume_from_checkpoint=true")
    try:
        live.wait(state_is("running"))
        live.wait(state_is("done"))
        assert again.wait(timeout=SECONDS) == 0
    finally:
        again.kill()
    live.wait("document.querySelectorAll('#part-samples .sample').length > 0")
    live.wait(f"document.querySelector('#part-curves').innerHTML !== {json.dumps(before)}")
    assert "amidkd report" in live.one("#part-status code").text
    assert live.run("return window.notReloaded") is True


def test_what_the_reader_did_outlives_an_update(live, served, tmp_path) -> None:
    from selenium.webdriver.common.keys import Keys

    rows = [(0, "complete", -3.0, 0.7), (1, "complete", -1.0, 0.5), (2, "complete", 1.0, 0.6)]

    def write(count: int) -> None:
        trials = [
            {"number": n, "state": state, "params": {"objective.alpha": alpha}, "folder": f"trials/{n:04d}"}
            | {
                "values": {"nll": value},
                "metrics": {},
                "seconds": 1.0,
                "tokens": 1,
                "steps": 1,
                "error": None,
                "runs": [],
            }
            for n, state, alpha, value in rows[:count]
        ]
        entry = {
            "name": "s",
            "space": {"objective.alpha": {"choices": [-3, -1, 1]}},
            "sampler": "grid",
            "pruner": "none",
        }
        entry |= {
            "objective": [{"metric": "nll", "direction": "minimize"}],
            "seeds": [42],
            "trials": trials,
            "best": [1],
        }
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "sweep.json").write_text(json.dumps({**entry, "stopped": None}))

    write(2)
    live.wait("document.querySelectorAll('#part-trials tbody tr').length === 2")
    live.one("#part-trials thead th:nth-child(4) button").click()
    assert live.texts("#part-trials tbody th") == ["1", "0"]
    live.one("#part-trials input[type=search]").send_keys("done", Keys.TAB)
    live.one("button.theme").click()
    write(3)
    live.wait("document.querySelectorAll('#part-trials tbody tr').length === 3")
    assert live.texts("#part-trials tbody th") == ["1", "2", "0"]
    assert live.run("return document.querySelector('#part-trials input').value") == "done"
    assert live.run("return document.documentElement.dataset.theme") == "dark"
    live.one("button.theme").click()
    live.size(390, 800)
    assert live.run("return document.documentElement.scrollWidth") <= 390


def test_the_end_of_the_watching_is_said(started_browser, tmp_path) -> None:
    page = LivePage(follow(tmp_path / "run"), tick=0.1)
    server = PageServer(page, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    started_browser.driver.get(server.url)
    started_browser.wait("document.querySelector('.link').hidden === true")
    page.close()
    server.shutdown()
    server.server_close()
    started_browser.wait("document.querySelector('.link').hidden === false")
    started_browser.driver.get("about:blank")
    # The browser reports the connection that it lost.
    started_browser.driver.get_log("browser")
    started_browser.requests()
