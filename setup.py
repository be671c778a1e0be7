"""The C++ row kernel. Everything else about the package is in pyproject.toml.

It is optional: without a compiler the package installs all the same, and says at run time what is missing.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

WINDOWS = ["/O2", "/std:c++17"]
OTHERS = ["-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-Wno-unknown-pragmas", "-g0"]


class BuildLibrary(build_ext):
    """Builds a library for ctypes, under a name that Python does not take for a module."""

    def get_ext_filename(self, fullname: str) -> str:
        """Where it goes, relative to the package's root."""
        return str(Path(*fullname.split("."))) + ".kernel"


setup(
    cmdclass={"build_ext": BuildLibrary},
    ext_modules=[
        Extension(
            "amidkd.kernels._fused",
            sources=["src/amidkd/kernels/fused.cpp"],
            language="c++",
            extra_compile_args=WINDOWS if sys.platform == "win32" else OTHERS,
            libraries=["dl", "pthread"] if sys.platform.startswith("linux") else [],
            optional=True,
        )
    ],
)
