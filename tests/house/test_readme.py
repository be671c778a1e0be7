"""The README's tree and commands are true."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from amidkd.config import load, parse

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
SHELL = [line.split("#")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]


def tree() -> list[str]:
    (block,) = [text for kind, text in BLOCKS if kind == "" and text.startswith("src/amidkd/")]
    paths, folder = [], ""
    for line in block.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
            paths.append(name)
        else:
            paths.append(folder + name)
    return paths


@pytest.mark.parametrize("path", tree())
def test_tree_names_what_exists(path: str) -> None:
    target = ROOT / path
    assert target.is_dir() if path.endswith("/") else target.is_file()


def test_tree_leaves_nothing_out() -> None:
    listed = {path.rstrip("/") for path in tree()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    modules = {"/".join(path.split("/")[:3]) for path in tracked if path.startswith("src/amidkd/")}
    folders = {path.split("/")[0] for path in tracked if "/" in path and not path.startswith(".")}
    plain = {"src/amidkd/__init__.py", "src/amidkd/__main__.py", "src/amidkd/py.typed"}
    assert modules - plain <= listed
    assert folders - {"src"} <= listed


def test_set_up_is_two_commands() -> None:
    first = next(text for kind, text in BLOCKS if kind == "sh")
    assert [line.split("#")[0].strip() for line in first.strip().splitlines()] == ["make demo", "make test"]


@pytest.mark.parametrize("command", [line for line in SHELL if line])
def test_command_exists(command: str, tmp_path) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    assert words[0] == ".venv/bin/amidkd"
    done = subprocess.run([sys.executable, "-m", "amidkd", words[1], "--help"], capture_output=True, check=False)
    assert done.returncode == 0
    if words[2].startswith("recipes/"):
        load(ROOT / words[2], words[3:])
    else:
        assert words[2] == str(Path(load(ROOT / "recipes/g2p.yaml").output.folder).relative_to(ROOT))


def test_example_run_file_is_accepted() -> None:
    import yaml

    (text,) = [text for kind, text in BLOCKS if kind == "yaml"]
    parse(yaml.safe_load(text.replace("1e-4", "1.0e-4")))


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name} links to {link}"
