import importlib.util

import pytest

from amidkd.config import parse
from amidkd.record import RunFolder, read_json_lines
from amidkd.training import distill


@pytest.fixture
def bare_loop(repository):
    spec = importlib.util.spec_from_file_location("bare_loop", repository / "examples" / "bare_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bare_loop_makes_the_losses_of_the_trainer(run_tree, bare_loop, repository) -> None:
    run_tree["objective"] |= {"cross_entropy_weight": 0.25, "temperature": 1.5}
    run_tree["training"] |= {"max_steps": 8, "logging_steps": 1, "weight_decay": 0.0}
    config = parse(run_tree)
    losses = bare_loop.main(config)
    lines = read_json_lines(RunFolder(distill(config).path).metrics_file)
    assert len(losses) == len(lines) == 8
    # Eight steps with dropout on, across the end of an epoch.
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-6)
    assert len((repository / "examples" / "bare_loop.py").read_text().splitlines()) < 140
