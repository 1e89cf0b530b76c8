# `make help` lists the targets.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Options of the pip call that installs torch, and of no other. On Linux the default torch is the
# CUDA build, which brings some gigabytes of nvidia packages. For the smaller CPU build:
#   make install PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu"
# What should hold for every pip call (a mirror, a proxy, a cache) belongs in pip's own settings.
PIP_ARGS ?=

# What `make lock` starts from; everything else comes from the ranges in pyproject.toml.
TORCH := torch==2.13.0

# Real data for the tests; tests that need it are skipped where it is missing.
SISA_TEST_DATA ?= ../shared
override SISA_TEST_DATA := $(abspath $(SISA_TEST_DATA))
export SISA_TEST_DATA
CONTRACT := $(SISA_TEST_DATA)/contract/check.py

PYTEST_ARGS ?=

.PHONY: help install lint format test torture demo schemas methods bench bench-accuracy bench-unlearning bench-unlearning-classifier lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-28s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## make .venv with the locked versions and this project (skipped when up to date)

# torch comes first and alone, so that its build can be chosen; the second call keeps that build
# and adds what the build itself asks for.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, and $(PYTHON) is not: name one with 'make install PYTHON=python3.11'." >&2; \
	  exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	@echo "installing into .venv (a few minutes the first time)"
	@$(BIN)/pip install --quiet --no-deps $(PIP_ARGS) "$$(grep '^torch==' requirements.lock)"
	@$(BIN)/pip install --quiet --requirement requirements.lock
	@$(BIN)/pip install --quiet --no-deps --editable .
	@touch $@

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP) ## all tests, then the command contract where $SISA_TEST_DATA holds one
	$(BIN)/pytest --numprocesses=2 --dist=loadfile $(PYTEST_ARGS)
	@if [ -f "$(CONTRACT)" ]; then \
	  echo "$(BIN)/python $(CONTRACT)"; \
	  $(BIN)/python "$(CONTRACT)"; \
	else \
	  echo "command contract skipped: no $(CONTRACT)"; \
	fi

# Hours, on an otherwise idle machine; interrupted, it goes on where it was (build/torture).
torture: $(STAMP) ## kills, lost writes, faults, bad bytes, crowds, histories, into docs/reliability.md
	$(BIN)/python -m tests.torture --page

demo: $(STAMP) ## train, forget and verify on a small data set
	$(BIN)/python examples/demo.py

schemas: $(STAMP) ## write docs/schemas, the JSON schemas of what commands print
	$(BIN)/python -m sisa.schemas docs/schemas

methods: $(STAMP) ## write the methods of `sisa unlearn` into docs/approximate.md, and for its list
	$(BIN)/python -m sisa.approximate.catalogue docs/approximate.md

# One after the other, on an otherwise idle machine: half an hour, most of it the job of minutes.
BENCHMARKS := step parts rollback memory forget unlearn_cost train

bench: $(STAMP) ## time, memory and cost of an erasure, into docs/benchmarks.md
	@for name in $(BENCHMARKS); do $(BIN)/python tests/benchmarks/$$name.py || exit 1; done

bench-accuracy: $(STAMP) ## accuracy against one unsharded model
	$(BIN)/python tests/benchmarks/accuracy.py
	$(BIN)/python tests/benchmarks/ladder.py

# An hour and more on two cores; interrupted, it goes on where it was (build/unlearning).
bench-unlearning: $(STAMP) ## approximate methods side by side, into docs/approximate-results.md
	$(BIN)/python tests/benchmarks/unlearn_language.py

# Some ten minutes of one core; interrupted, it goes on where it was (build/unlearning-classifier).
bench-unlearning-classifier: $(STAMP) ## the same for a classifier, into docs/approximate-classifiers.md
	$(BIN)/python tests/benchmarks/unlearn_classifier.py

# Resolved with the oldest supported Python, so that the versions fit the newer ones too. What only
# the CUDA build of torch needs is left out: torch itself pins it, and other platforms lack it.
lock: ## resolve the newest allowed versions into requirements.lock
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "The lock is made with Python 3.11: name it with 'make lock PYTHON=python3.11'." >&2; exit 1; }; \
	$(PYTHON) -m venv "$$tmp/venv"; \
	"$$tmp/venv/bin/pip" install --quiet $(PIP_ARGS) $(TORCH); \
	"$$tmp/venv/bin/pip" install --quiet --editable '.[dev]'; \
	"$$tmp/venv/bin/pip" freeze --exclude-editable >"$$tmp/frozen"; \
	{ echo "# Exact versions for running, linting and testing. Made by 'make lock'; do not edit."; \
	  sed -E 's/^(torch==[^+]*)\+.*/\1/' "$$tmp/frozen" \
	    | grep -vE '^(nvidia-|cuda-|triton==)' | LC_ALL=C sort -f; } >"$$tmp/lock"; \
	if grep -E '@|://|\+' "$$tmp/lock"; then \
	  echo "These lines name a place or a local build; requirements.lock is left as it was." >&2; exit 1; fi; \
	cat "$$tmp/lock" >requirements.lock

clean: ## remove caches and build output, keep .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +
