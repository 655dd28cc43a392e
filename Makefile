# SPDX-License-Identifier: MIT
# make run    build what is needed, and boot the demo guest
# make test   all checks but the slow ones
# The rest: docs/development.md.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MADE   := $(VENV)/.made
SKIPS  := .cache/skipped
PYTEST := $(BIN)/python -m pytest
# What `make run` passes on: make run ARGS="-S --memory 1G"
ARGS   ?=

# Of `make fuzz`, and files of gdb's testsuite: make gdb-testsuite ARGS="gdb.base/break.exp".
FUZZ_SECONDS ?= 600

.PHONY: env images run test test-all test-tools lint format unit e2e bench gdb-testsuite fuzz clean

env: $(MADE) images

$(MADE): pyproject.toml tools/make_env.py
	$(PYTHON) tools/make_env.py $(VENV)
	@touch $@

# Compiles what is older than its sources, and nothing else. Python may be told not to write
# bytecode; half of svsmd's start is compiling it.
images: $(MADE)
	@$(BIN)/python tools/build_images.py
	@$(BIN)/python -m compileall -q svsmd

run: env
	@exec $(BIN)/svsmd run demo $(ARGS)

test-tools: $(MADE)
	@$(BIN)/python tools/setup_test_tools.py test
	@mkdir -p $(dir $(SKIPS)) && : > $(SKIPS)

test: env test-tools lint
	$(PYTEST) tests/unit tests/property -q -n 2 --skip-log=$(SKIPS)
	$(PYTEST) tests/e2e -q -m "not slow" --skip-log=$(SKIPS)

test-all: env test-tools lint
	$(PYTEST) tests/unit tests/property -q -n 2 --skip-log=$(SKIPS) --no-skips
	$(PYTEST) tests/e2e -q --skip-log=$(SKIPS) --no-skips

lint: $(MADE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(MADE)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

unit: env
	$(PYTEST) tests/unit tests/property -q -n 2

e2e: env
	$(PYTEST) tests/e2e -q -m "not slow"

bench: env
	@$(BIN)/python tools/setup_test_tools.py bench
	$(BIN)/python -m tools.bench

gdb-testsuite: env test-tools
	$(BIN)/python -m tools.gdb_testsuite $(ARGS)

fuzz: env
	$(BIN)/python -m tests.fuzz.session .cache/fuzz -max_total_time=$(FUZZ_SECONDS) -timeout=10 \
		-rss_limit_mb=512 -artifact_prefix=.cache/

clean:
	rm -rf $(VENV) .cache build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache svsmd/images/*.elf svsmd/images/*.tar svsmd/*/native/*.so
	find svsmd tests tools -name __pycache__ -type d -exec rm -rf {} +
