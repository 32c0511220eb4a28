# tideloop: the only commands anyone needs. CI calls the same ones.
#
#   PYTHON=python3.13   the interpreter          VENV=.venv-3.13   its virtual environment
#
# Every target builds what it needs and does nothing when nothing changed.

PYTHON ?= python3
VENV ?= .venv
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PY := $(VENV)/bin/python
# An extension of each interpreter has its own build folder: switching between them rebuilds nothing.
BUILD_DIR := target/$(patsubst .%,%,$(notdir $(VENV)))
RUST := Cargo.toml Cargo.lock pyproject.toml $(shell find crates -name '*.rs' -o -name Cargo.toml)
PYTEST_ARGS ?=

.PHONY: help demo test build bench lint fmt docs clean conformance fuzz soak memcheck check-python check-cargo test-rust test-python test-real test-stubs

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- what a machine must have; each complaint is one line ---------------------------------------

check-python:
	@command -v "$(PYTHON)" >/dev/null || { echo "make: no interpreter '$(PYTHON)'; tideloop needs CPython 3.11 or newer (PYTHON= names one)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.implementation.name != "cpython" or sys.version_info < (3, 11))' \
	  || { echo "make: '$(PYTHON)' is $$("$(PYTHON)" -c 'import platform as p; print(p.python_implementation(), p.python_version())'); tideloop needs CPython 3.11 or newer (PYTHON= names one)" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null \
	  || { echo "make: '$(PYTHON)' has no venv module; install it (on Debian: apt-get install python3-venv)" >&2; exit 1; }

check-cargo:
	@command -v cargo >/dev/null || { echo "make: cargo not found; tideloop's core is Rust (1.88 or newer), see rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "make: no C compiler 'cc'; Rust links with one (on Debian: apt-get install gcc libc6-dev)" >&2; exit 1; }

# --- set-up -------------------------------------------------------------------------------------

# The stamp is named for the interpreter: a folder made for another one is made anew.
VENV_TAG := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || echo none)
VENV_STAMP := $(VENV)/.made-$(VENV_TAG)

$(VENV_STAMP): requirements/test.txt | check-python
	@if [ -e $(VENV) ] && ! [ -e $@ ] && ls $(VENV)/.made-* >/dev/null 2>&1; then \
	  echo "make: $(VENV) was made for another Python; making it anew for $(VENV_TAG) (VENV= keeps both)"; fi
	@"$(PYTHON)" -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements/test.txt
	@touch $@

# Packages to compare with (.lab) or to work with (.real): one that does not install is reported, not fatal.
$(VENV)/.lab $(VENV)/.real: $(VENV)/.%: requirements/%.txt $(VENV_STAMP)
	@while read -r line; do case "$$line" in ''|'#'*) continue;; esac; \
	  $(PY) -m pip install --quiet --disable-pip-version-check "$$line" \
	    || echo "make: $$line does not install here; what needs it will be reported as skipped" >&2; \
	done < $<
	@touch $@

$(VENV)/.docs: requirements/docs.txt $(VENV_STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	@touch $@

$(VENV)/.built: $(RUST) $(VENV_STAMP) | check-cargo
	@echo "make: building the extension for Python $(VENV_TAG) (release; a minute the first time)"
	@CARGO_TARGET_DIR=$(BUILD_DIR) VIRTUAL_ENV=$(abspath $(VENV)) $(PY) -m maturin develop --release --quiet > $(VENV)/build.log 2>&1 \
	  || { cat $(VENV)/build.log >&2; exit 1; }
	@cargo build --release --quiet -p tideloop-load
	@cp target/release/tideloop-load$(if $(filter Windows_NT,$(OS)),.exe) $(VENV)/bin/
	@touch $@

build: check-python check-cargo $(VENV)/.built ## release build, installed in VENV

# --- for people ---------------------------------------------------------------------------------

demo: build $(VENV)/.lab ## real aiohttp on tideloop against stock asyncio, then the lab's quick profile
	@$(PY) examples/aiohttp_pages.py --compare
	@$(VENV)/bin/tideloop lab --profile quick

bench: build $(VENV)/.lab ## the figures that the README quotes
	@$(PY) benches/run.py

docs: build $(VENV)/.docs ## API pages: docs/api for Python, target/doc for Rust
	@$(PY) -m pdoc --output-directory docs/api tideloop tideloop.loop tideloop.lab '!tideloop.lab.__main__'
	@RUSTDOCFLAGS="-D warnings" cargo doc --locked --quiet --no-deps
	@echo "make: docs/api/index.html, target/doc/tideloop_core/index.html"

# --- for contributors ---------------------------------------------------------------------------

test: lint test-rust test-python test-stubs ## everything a contributor must pass

test-rust: check-cargo
	@if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --locked --no-fail-fast; else cargo test --locked --no-fail-fast; fi

TASK_TESTS := $(addprefix tests/parity/test_,tasks.py asyncgens.py call_soon.py debug.py exceptions.py run.py threadsafe.py) \
  tests/leaks tests/fuzz tests/test_polling.py

test-python: build $(VENV)/.lab
	@$(PY) -m pytest $(PYTEST_ARGS)
	@echo "make: once more on the portable selector"
	@TIDELOOP_SELECTOR=polling $(PY) -m pytest --quiet -k tideloop tests/parity tests/leaks
	@echo "make: what concerns tasks once more with stock tasks"
	@TIDELOOP_TASKS=stock $(PY) -m pytest --quiet -k tideloop $(TASK_TESTS)

test-real: build $(VENV)/.real ## real servers and clients on tideloop (TIDELOOP_REAL=required: skip none)
	@$(PY) -m pytest tests/real $(PYTEST_ARGS)

test-stubs: build
	@$(PY) -m mypy.stubtest tideloop._tideloop --mypy-config-file pyproject.toml --allowlist tests/stubtest-allow.txt

conformance: build ## CPython's own asyncio tests, from the interpreter that is installed
	@$(PY) -m tests.conformance

fuzz: build ## 20,000 random task programs, compared with stock asyncio event by event
	@$(PY) -m tests.fuzz.tasks

soak: build ## a million tasks alive, a million cancelled, and nothing left afterwards (1.5 GB)
	@$(PY) -m tests.soak

memcheck: build ## tasks, futures and handles under valgrind
	@$(PY) -m tests.memcheck

lint: build $(VENV)/.lab ## rustfmt, clippy, ruff, mypy
	@cargo fmt --all --check
	@cargo clippy --locked --quiet --all-targets -- -D warnings
	@PYO3_PYTHON=$(abspath $(PY)) CARGO_TARGET_DIR=$(BUILD_DIR) cargo clippy --locked --quiet -p tideloop-py -- -D warnings
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

fmt: build ## format both languages
	@cargo fmt --all
	@$(PY) -m ruff check --fix --quiet .
	@$(PY) -m ruff format --quiet .

clean: ## remove what make made
	@rm -rf target .venv $(VENV) results python/tideloop/*.so docs/api
	@find python tests examples -name __pycache__ -type d -exec rm -rf {} +
