# Every target works on a fresh clone: the first one that needs the environment builds it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BENCH  := $(VENV)/.ready-bench
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-full check format bench docs clean

help:            ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

$(READY): pyproject.toml constraints.txt setup.py src/amidkd/kernels/fused.cpp
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,lora,dpo,serve,ensemble,sweep,ray,lm-eval]'
	touch $@

demo: $(READY)   ## distil the built-in teacher into a small student and write a report
	$(BIN)/amidkd demo

test: $(READY)   ## the tests that every change must pass
	$(BIN)/python -m pytest -n $(WORKERS) -m 'not full'

test-full: $(READY)  ## the same, with the whole grid of divergences, pairs, α and λ
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(READY)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peers that the benchmark compares with are large; nothing else needs them.
$(BENCH): $(READY)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	touch $@

bench: $(BENCH)  ## the benchmarks against their peers, with a table of goals; ARGS="--quick" for a try
	$(BIN)/python benchmarks/run.py $(ARGS)

docs: $(READY)   ## write docs/reference from the schema and the docstrings
	$(BIN)/python docs/make_reference.py

clean:           ## remove the environment and caches
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis
