"""Every example in a docstring of the mathematics runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import amidkd.maths

MODULES = [info.name for info in pkgutil.walk_packages(amidkd.maths.__path__, "amidkd.maths.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert result.failed == 0


def test_there_are_examples_to_run():
    finder = doctest.DocTestFinder()
    count = sum(len(test.examples) for name in MODULES for test in finder.find(importlib.import_module(name)))
    assert count >= 15
