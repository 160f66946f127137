# Every target sets up .venv by itself; a fresh machine needs python3 (3.11 or newer for the pins) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= out/demo

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint format clean

help:  ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -e 's/:.*## /\t/' | expand -t 10

demo: $(READY)  ## export, run, verify and compare the built-in model; pictures in out/demo
	$(BIN)/foveate demo --out $(OUT)

test: $(READY)  ## the tests, without those that take minutes or gigabytes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile -q

slow: $(READY)  ## the tests that take minutes or gigabytes
	$(BIN)/python -m pytest -m slow -q

lint: $(READY)  ## ruff, and mypy --strict on the four packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p foveate.export -p foveate.pruning -p foveate.runtime -p foveate.tools

format: $(READY)  ## let ruff mend what it can; renew the file tree in README.md and docs/families.md
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python .ci/readme_tree.py
	$(BIN)/python .ci/families_page.py

clean:  ## remove the environment, caches and outputs
	rm -rf $(VENV) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache

# The stamp is renewed when the packages or the pins change. setuptools comes first: the pins hold for the build too.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("make needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation --editable ".[test]"
	@touch $@
