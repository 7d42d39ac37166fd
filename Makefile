# make pipeline MODEL=resnet18        from nothing to a small ONNX file and its report
# make test                           the fast tests; make test-slow adds the minutes-long ones
MODEL ?= resnet18
DATA ?= fashion-mnist
PIPELINE ?= default
PYTHON ?= python3
UV_VERSION := 0.13.9

BIN := .venv/bin
READY := .venv/ready
# Two tests at a time, one core each: most of a test is one thread's work. A process that has no
# tests left takes some from the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup pipeline lint types test coverage test-slow chromium torture fuzz mutation bench lock format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## create .venv with the pinned dependencies

# uv installs the stack in half a minute where pip takes minutes. Compiled once, the libraries start
# in half the time, whatever PYTHONDONTWRITEBYTECODE says.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "compress needs Python 3.11 or newer; specify one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --compile-bytecode --require-hashes -r requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --no-deps --editable .
	@touch $@

pipeline: $(READY)  ## run all stages: MODEL=resnet18 DATA=fashion-mnist PIPELINE=default
	$(BIN)/compress run $(MODEL) --data $(DATA) --pipeline $(PIPELINE)

lint: $(READY)  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy --strict
	$(BIN)/mypy

test: $(READY)  ## the fast tests, eight minutes on 2 cores
	$(PYTEST)

coverage: $(READY)  ## the fast tests again, with branch coverage of compress/
	$(PYTEST) --cov --cov-report=term:skip-covered

test-slow: $(READY) chromium  ## the tests that take minutes each
	$(PYTEST) -m slow

chromium:
	@command -v chromium >/dev/null || { echo "make test-slow needs Chromium, which opens the \
	report's page; on Debian: apt-get install chromium" >&2; exit 2; }

torture: $(READY)  ## 200 kills, Ctrl-C and full disks; half an hour; result in bench/results
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.torture

fuzz: $(READY)  ## read 10,000 damaged files; a quarter of an hour; result in bench/results
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.fuzz

mutation: $(READY)  ## put small faults into the code, one at a time; an hour; result in bench/results
	$(BIN)/python -m bench.mutation

bench: $(READY)  ## every comparison, half a day; results go to bench/results
	$(BIN)/python -m bench

lock: $(READY)  ## update the pinned dependencies
	VIRTUAL_ENV=.venv $(BIN)/uv pip compile pyproject.toml --group dev --universal \
		--generate-hashes --no-header --no-emit-index-url --upgrade -o requirements.lock

format: $(READY)  ## ruff: format and fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove build outputs; runs/ stays
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
