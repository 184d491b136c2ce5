# make demo: the whole loop on the built-in reasoner. make check: lint, format, types.
# make test: the tests except those marked slow, gpu or real. make test-all: all tests; those whose requirements are missing are skipped.
# make coverage: make test, with a report of lines and branches that no test reaches, on the terminal and in htmlcov/.
# make docs: the docs site, into site/; warnings are errors.
# make simulations: the slow tests of statistics. make fuzz SECONDS=600: the readers on damaged files, for 600 seconds.
# Each creates .venv and installs its requirements, once.
PYTHON ?= python3
BIN := .venv/bin
# One thread per process: more would compete for the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo quick test test-all coverage simulations fuzz check docs clean
demo: .venv/run
	$(BIN)/stepmend run

quick: .venv/run
	$(BIN)/stepmend run --quick

test: .venv/test
	$(PYTEST) -m "not slow and not gpu and not real"

test-all: .venv/test
	$(PYTEST)

coverage: .venv/test
	$(PYTEST) -m "not slow and not gpu and not real" --cov --cov-report=term-missing --cov-report=html

simulations: .venv/test
	$(PYTEST) -m slow tests/measure

fuzz: SECONDS ?= 600
fuzz: .venv/test
	STEPMEND_FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest tests/test_fuzz.py

# Type checking the tests needs the libraries that they import.
check: .venv/check .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: .venv-docs/made
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

# A separate environment without torch, which the docs do not need.
.venv-docs/made: pyproject.toml constraints.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

# torch is installed first and alone: together with the rest, a CPU machine may get a build with gigabytes of CUDA.
.venv/run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[run]'
	touch $@

.venv/%: .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[run,$*]'
	touch $@

clean:
	rm -rf .venv .venv-docs runs site htmlcov .coverage*
