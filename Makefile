# make demo: the whole loop on the built-in reasoner. make test: the tests. make simulations: the slow ones, which are statistics.
# make check: lint, format, types.
# Each makes .venv and installs what it needs, once.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo quick test simulations check clean
demo: .venv/run
	$(BIN)/stepmend run

quick: .venv/run
	$(BIN)/stepmend run --quick

test: .venv/test
	$(BIN)/python -m pytest -m "not slow"

simulations: .venv/test
	$(BIN)/python -m pytest -m slow tests/measure

# The types of the tests need what the tests import.
check: .venv/check .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# torch goes first and alone: asked for in one go, a CPU machine may resolve to a build with gigabytes of CUDA.
.venv/run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[run]'
	touch $@

.venv/%: .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[run,$*]'
	touch $@

clean:
	rm -rf .venv runs
