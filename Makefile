# make help lists the targets. `make demo` and `make test` do all the set-up they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make .venv with the locked dependencies (a Java runtime among them)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## Cluster and prune scikit-learn's handwritten digits into demo-run/
	$(BIN)/spark-dbp demo demo-run

test: $(STAMP)  ## Run all tests
	$(BIN)/python -m pytest

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## Measure against peers (BENCH=--quick for a quick look)
	$(BIN)/python -m benchmarks $(BENCH)

lock:  ## Resolve requirements.lock anew (needs uv)
	uv pip compile --universal --python-version 3.10 --all-extras --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --quiet pyproject.toml --output-file requirements.lock

clean:  ## Delete what the targets above made
	rm -rf $(VENV) build dist demo-run *.egg-info
