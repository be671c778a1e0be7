"""Every recipe is a run file that this version accepts, and says the command that runs it."""

from pathlib import Path

import pytest

from amidkd.config import load
from amidkd.training import check_training_settings

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


def test_there_is_a_recipe_for_each_use() -> None:
    uses = {"g2p", "stories", "gpt2_dolly", "qwen_chat_lora", "demo_teacher"}
    policies = {"on_policy", "mixed", "adaptive", "contrastive", "seqkd", "warmup"}
    assert uses | {f"g2p_{policy}" for policy in policies} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_is_accepted(path: Path) -> None:
    config = load(path)
    check_training_settings(config)
    assert Path(config.output.folder).parent.name == "runs"
