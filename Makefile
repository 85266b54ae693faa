# `make` lists the targets. On a fresh machine `make demo` and `make test` do all the set-up.

PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=
SIZE ?= small
RESULTS_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test bench results lint format clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## create .venv with everything, tested versions (PYTHON=python3.12 chooses a Python)

demo: install ## train a small model on data that comes with the package
	$(BIN)/python -m svae.train experiment=demo

# One thread for each worker: torch in several processes otherwise fights over the cores, and a
# fixed number of threads gives the same sums on every machine. By file: fixtures are built once.
test: install ## run all tests (PYTEST_ARGS="-m 'not slow'" narrows, WORKERS=8 widens)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

bench: install ## time a training step on this machine (BENCH_ARGS="names=[spatial_vae]" narrows)
	$(BIN)/python -m svae.bench $(BENCH_ARGS)

results: install ## train what the papers report, write RESULTS.md (SIZE=full: for GPUs)
	$(BIN)/python -m svae.results size=$(SIZE) jobs=$(WORKERS) $(RESULTS_ARGS)

lint: install ## check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy src

format: install ## rewrite the code in the project's format
	$(BIN)/python -m ruff check --fix-only .
	$(BIN)/python -m ruff format .

clean: ## remove caches and build results (keeps .venv and outputs)
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
	find src tests conf -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp makes `install` do nothing until what is to be installed changes. A Python without
# `ensurepip` (Debian's, for one) lets its own pip put pip into the environment.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -c '' 2>/dev/null || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "svae needs Python 3.11 or newer and '$(PYTHON)' is not: make install PYTHON=python3.11" >&2; \
	    exit 1; }; \
	  echo "Making $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv --clear --without-pip $(VENV); }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || $(BIN)/python -m ensurepip >/dev/null 2>&1 \
	  || $(PYTHON) -m pip --python $(BIN)/python install pip
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@touch $@
