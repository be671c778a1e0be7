"""The layers of docs/design/architecture.md hold, in the source and at run time."""

import subprocess
import sys

import pytest

FORBIDDEN_AT_IMPORT = {
    "amidkd": ["torch", "transformers", "pydantic"],
    "amidkd.maths": ["transformers", "datasets", "trl", "triton", "accelerate", "pydantic"],
    "amidkd.signals": ["transformers", "datasets", "trl", "triton", "accelerate"],
    "amidkd.kernels": ["transformers", "datasets", "trl", "triton", "accelerate"],
    "amidkd.config": ["torch", "transformers", "datasets"],
    "amidkd.record": ["torch", "transformers", "datasets", "pydantic"],
    "amidkd.citations": ["torch", "transformers"],
    "amidkd.cli": ["torch", "transformers", "datasets", "matplotlib"],
}


def test_no_layer_imports_one_below_it(repository) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run(['--no-cache'])"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("module", FORBIDDEN_AT_IMPORT)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert module.split(".")[0] in loaded
    assert not set(FORBIDDEN_AT_IMPORT[module]) & set(loaded)
