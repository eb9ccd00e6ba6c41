# `make demo` and `make test` are all a fresh machine needs: python3 (3.10 or newer, with venv), make, cc.

PYTHON ?= python3
# More arguments for pip, for example an index with CPU builds of torch (see README.md).
PIP_ARGS ?=
# A corpus folder for `make demo` to use instead of the shipped digits.
DATA ?=
# More arguments for pytest, and for `make bench-NAME`.
PYTEST_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TYPING := build/typing
TFLITE_VENV := .venv-tflite
# Pythons that tflite-runtime has wheels for; the first one that runs is taken.
TFLITE_PYTHONS ?= $(PYTHON) python3.11 python3.10
LITERT_VENV := .venv-litert
LITERT_PYTHONS ?= $(PYTHON) python3.13 python3.12 python3.11
MAPPED := train export firmware_bridge

# One thread a process: the suite runs one process a core.
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup tflite-runtime litert-oracle demo test test-slow lint format typecheck check bench-latency \
  bench-frontend bench-loss bench-attention bench-data bench-select bench-runtimes wheel wheels clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv and install everything, once

# The build backend goes in first and the project is built without isolation: so every package,
# the backend too, comes from constraints.txt, and nothing resolves torch unpinned.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard train/objective/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "expected Python 3.10 or newer, got $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "python3 has no venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV) (2.5 GB, a minute or two)"
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt setuptools
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

# $(call own-venv,PYTHONS,VERSIONS): a virtual environment in the folder of the target, of the first of
# the pythons that has one of the versions.
define own-venv
for python in $($(1)) none; do \
  $$python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] not in "$(2)".split())' 2>/dev/null \
    && break; \
done; \
test $$python != none \
  || { echo "expected Python $(2) among: $($(1)); what it is for has wheels for no other; try: make $(MAKECMDGOALS) $(1)=/path/of/python3.11" >&2; exit 1; }; \
$$python -m venv $(@D) \
  || { rm -rf $(@D); echo "$$python has no venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
endef

tflite-runtime: $(TFLITE_VENV)/.installed  ## tflite-runtime 2.14 in .venv-tflite, for `verify` and the tests

$(TFLITE_VENV)/.installed: constraints-tflite.txt
	@$(call own-venv,TFLITE_PYTHONS,3.10 3.11)
	@$(TFLITE_VENV)/bin/python -m pip install -q $(PIP_ARGS) -c constraints-tflite.txt tflite-runtime
	@touch $@

litert-oracle: $(LITERT_VENV)/.installed  ## litert-torch in .venv-litert (2.1 GB), for `verify` and `bench runtimes`

# With a CPU build of torch it is 2.1 GB; where pip would fetch CUDA, see README.md for PIP_ARGS.
$(LITERT_VENV)/.installed: constraints-litert.txt
	@$(call own-venv,LITERT_PYTHONS,3.11 3.12 3.13)
	@$(LITERT_VENV)/bin/python -m pip install -q $(PIP_ARGS) -c constraints-litert.txt torch litert-torch
	@touch $@

demo: setup  ## train, quantise, export and run a small digit recogniser into build/demo (DATA=folder)
	$(BIN)/edge-imputer demo --out build/demo $(if $(DATA),--data '$(DATA)')

test: setup  ## the test suite, without the slow checks (PYTEST_ARGS=...)
	$(BIN)/python -m pytest -m 'not slow' -n auto --dist loadfile $(PYTEST_ARGS)

test-slow: setup litert-oracle  ## the slow checks only, litert-torch's among them
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

lint: setup  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## ruff: mend what it can, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# mypy knows no package-dir mapping: lay the packages out under their installed names.
typecheck: setup  ## mypy --strict under the installed package names
	@rm -rf $(TYPING) && mkdir -p $(TYPING)/edge_imputer
	@for path in edge_imputer/*.py edge_imputer/py.typed edge_imputer/[a-z]*/ $(MAPPED); do \
	  ln -s "../../../$${path%/}" $(TYPING)/edge_imputer/ || exit 1; done
	cd $(TYPING) && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
	  --cache-dir ../../.mypy_cache -p edge_imputer

check: lint typecheck test  ## everything CI runs

bench-latency: setup  ## CPU microseconds a step on every runtime (BENCH_ARGS=...)
	$(BIN)/edge-imputer bench latency $(BENCH_ARGS)

bench-frontend: setup  ## CPU microseconds of the front ends a second of audio (BENCH_ARGS=...)
	$(BIN)/edge-imputer bench frontend $(BENCH_ARGS)

bench-loss: setup  ## the training loss beside torch's, forward and backward (BENCH_ARGS=...)
	$(BIN)/edge-imputer bench loss $(BENCH_ARGS)

bench-attention: setup  ## sparse attention beside dense, against length, with a plot (BENCH_ARGS=...)
	$(BIN)/edge-imputer bench attention $(BENCH_ARGS)

bench-data: setup  ## files to augmented batches: CPU time of one core, memory of a million rows
	$(BIN)/edge-imputer bench data $(BENCH_ARGS)

bench-select: setup  ## scoring a pool: CPU time of one core by strategy, memory of a million rows
	$(BIN)/edge-imputer bench select $(BENCH_ARGS)

bench-runtimes: setup  ## presets in every runtime, CPU time a second of audio (BENCH_ARGS=--all)
	$(BIN)/edge-imputer bench runtimes $(BENCH_ARGS)

bench-%: setup  ## any other benchmark of `edge-imputer bench`
	$(BIN)/edge-imputer bench $* $(BENCH_ARGS)

# From a clean build folder: setuptools would ship files that were removed since the last build.
wheel: setup  ## the wheel, into dist/
	@rm -rf build/lib* build/bdist.* dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

# The same by zig's C compiler, which brings every platform's headers. Tested is Linux on x86-64.
TARGETS := linux-x86_64 linux-aarch64 macos-arm64 macos-x86_64 windows-x86_64
wheels: setup  ## wheels of every platform, cross-compiled, into dist/
	@rm -rf dist
	@for target in $(TARGETS); do rm -rf build/lib* build/bdist.*; \
	  EDGE_IMPUTER_TARGET=$$target $(BIN)/python -m build --wheel --no-isolation --outdir dist . || exit 1; done

clean:  ## remove what was built; .venv stays
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(MAPPED) edge_imputer tests docs -name __pycache__ -prune -exec rm -rf {} +
