"""The C++ row kernel. Everything else about the package is in pyproject.toml.

It is optional: without a compiler the package installs all the same, and says at run time what is missing.
"""

import sys

from setuptools import Extension, setup

WINDOWS = ["/O2", "/std:c++17"]
OTHERS = ["-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-Wno-unknown-pragmas", "-g0"]

setup(
    ext_modules=[
        Extension(
            "amidkd.kernels._fused",
            sources=["src/amidkd/kernels/fused.cpp"],
            language="c++",
            extra_compile_args=WINDOWS if sys.platform == "win32" else OTHERS,
            libraries=["dl", "pthread"] if sys.platform.startswith("linux") else [],
            optional=True,
        )
    ]
)
