"""Every public name is declared and documented; the reference pages match the code."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import amidkd

MODULES = sorted(
    info.name for info in pkgutil.walk_packages(amidkd.__path__, "amidkd.") if not info.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_declared_and_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert hasattr(module, "__all__"), f"{name} declares no __all__"
    for public in module.__all__:
        member = getattr(module, public)
        if inspect.isclass(member) or inspect.isfunction(member):
            assert member.__doc__, f"{name}.{public} has no docstring"
            if inspect.isclass(member):
                for method, value in vars(member).items():
                    plain = inspect.isfunction(value) and not method.startswith("_")
                    # A validator's rule is in its message; pydantic hides the function behind a descriptor.
                    assert not plain or value.__doc__ or _inherits_doc(member, method), (
                        f"{name}.{public}.{method} has no docstring"
                    )


def _inherits_doc(member: type, method: str) -> bool:
    return any(getattr(getattr(base, method, None), "__doc__", None) for base in member.__mro__[1:])


def test_reference_pages_are_what_the_code_says(repository) -> None:
    done = subprocess.run(
        [sys.executable, "docs/make_reference.py", "--check"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
