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
RUST := Cargo.toml Cargo.lock pyproject.toml $(shell find crates -name '*.rs' -o -name '*.html' -o -name Cargo.toml)
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
PYTEST_ARGS ?=
# Python tests run in so many processes; JOBS=0 runs them in one, as a debugger wants it.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)

.PHONY: help demo test build profile bench bench-toolkit bench-sockets loom lint lint-rust lint-python fmt docs clean conformance fuzz fuzz-tasks soak memcheck sanitize refcheck check-python check-cargo test-rust test-python test-real test-stubs

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

# The load client speaks TLS where its library builds with any C compiler.
LOAD_FEATURES := $(if $(filter Windows_NT,$(OS)),,--features tls)

# What a run of pgo/train.py has counted tells the compiler what is hot (ARCHITECTURE.md, "The release build").
# Names in a profile are one compiler's, so that another one builds without; so does PROFILE=.
PROFILE ?= $(shell [ "$$(rustc -V 2>/dev/null)" = "$$(cat pgo/rustc 2>/dev/null)" ] && echo pgo/tideloop.profdata)
# Code that is newer than the profile is no news, least of all between the errors of a build.
PROFILE_USE := $(if $(PROFILE),RUSTFLAGS="$${RUSTFLAGS:-} -Cprofile-use=$(abspath $(PROFILE)) -Cllvm-args=-no-pgo-warn-mismatch")

# Named for both: with another profile, or compiler, the extension is another one.
PROFILE_STAMP := $(VENV)/.profile-$(shell echo "$(PROFILE) $$(rustc -V 2>/dev/null)" | cksum | cut -d ' ' -f 1)

$(PROFILE_STAMP): | $(VENV_STAMP)
	@rm -f $(VENV)/.profile-*
	@touch $@

$(VENV)/.built: $(RUST) $(PROFILE) $(PROFILE_STAMP) $(VENV_STAMP) | check-cargo
	@echo "make: building the extension for Python $(VENV_TAG) (release; a minute the first time)"
	@[ -n "$(PROFILE)" ] || echo "make: without a profile: pgo/tideloop.profdata is for $$(cat pgo/rustc)"
	@CARGO_TARGET_DIR=$(BUILD_DIR) VIRTUAL_ENV=$(abspath $(VENV)) $(PROFILE_USE) $(PY) -m maturin develop --release --quiet > $(VENV)/build.log 2>&1 \
	  || { cat $(VENV)/build.log >&2; exit 1; }
	@touch $@

# The lab's load client.
$(VENV)/.load: $(RUST) $(VENV_STAMP) | check-cargo
	@cargo build --locked --release --quiet -p tideloop-load $(LOAD_FEATURES)
	@cp target/release/tideloop-load$(if $(filter Windows_NT,$(OS)),.exe) $(VENV)/bin/
	@touch $@

build: check-python check-cargo $(VENV)/.built $(VENV)/.load ## release build, installed in VENV

# The raw counts of build scripts, which are compiled in the same way, are thrown away. Each interpreter has code of its
# own; what was counted under another one, in its VENV, is merged in.
PROFILED := $(abspath target/profile/$(patsubst .%,%,$(notdir $(VENV))))
PROFDATA = $(shell rustc --print sysroot)/lib/rustlib/$(HOST)/bin/llvm-profdata

profile: check-python check-cargo $(VENV)/.lab $(VENV)/.load ## counts anew what the release build is optimised for
	@[ -x "$(PROFDATA)" ] || { echo "make: no llvm-profdata; 'rustup component add llvm-tools' gets it" >&2; exit 1; }
	@echo "make: building an extension that counts, for Python $(VENV_TAG)"
	@LLVM_PROFILE_FILE=/dev/null PYO3_PYTHON=$(abspath $(PY)) CARGO_TARGET_DIR=$(PROFILED) \
	  RUSTFLAGS=-Cprofile-generate=$(PROFILED)/raw cargo build --locked --release --quiet -p tideloop-py
	@rm -rf $(PROFILED)/raw $(PROFILED)/python && mkdir -p $(PROFILED)/python
	@cp -r python/tideloop $(PROFILED)/python && rm -f $(PROFILED)/python/tideloop/*.so
	@cp $(PROFILED)/release/lib_tideloop.so \
	  $(PROFILED)/python/tideloop/_tideloop$$($(PY) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
	@PYTHONPATH=$(PROFILED)/python PATH="$(abspath $(VENV)/bin):$$PATH" $(PY) pgo/train.py
	@$(PROFDATA) merge -sparse -o $(PROFILED)/tideloop.profdata $(PROFILED)/raw/*.profraw
	@$(PROFDATA) merge -sparse -o pgo/tideloop.profdata target/profile/*/tideloop.profdata
	@rustc -V > pgo/rustc
	@echo "make: pgo/tideloop.profdata has the counts of $$(cd target/profile && ls -d */tideloop.profdata | xargs dirname | xargs)"

# --- for people ---------------------------------------------------------------------------------

demo: build $(VENV)/.lab ## real aiohttp on tideloop against stock asyncio, then the lab's quick profile
	@$(PY) examples/aiohttp_pages.py --compare
	@$(VENV)/bin/tideloop lab --profile quick

bench: build $(VENV)/.lab ## the figures that the README quotes
	@$(PY) benches/run.py

bench-toolkit: build $(VENV)/.lab ## what the toolkit costs beside other libraries; BENCH_ARGS=--markdown for the documents
	@$(PY) benches/toolkit.py $(BENCH_ARGS)

bench-sockets: build $(VENV)/.lab ## what connections cost beside other loops and the system itself, and what is asked of that
	@$(PY) benches/sockets.py $(BENCH_ARGS)

docs: build $(VENV)/.docs ## API pages: docs/api for Python, target/doc for Rust
	@$(PY) -m pdoc --output-directory docs/api tideloop tideloop.loop tideloop.lab '!tideloop.lab.__main__'
	@RUSTDOCFLAGS="-D warnings" cargo doc --locked --quiet --no-deps
	@echo "make: docs/api/index.html, target/doc/tideloop_core/index.html"

# --- for contributors ---------------------------------------------------------------------------

# A link keeps one core busy and a test another: what needs no loop runs side by side, and each part's words come together.
test: ## everything a contributor must pass
	@echo "make: builds, checks and Rust's tests side by side; each reports when it has ended"
	@$(MAKE) --no-print-directory --output-sync=target --jobs=$(or $(filter-out 0,$(JOBS)),1) build $(VENV)/.lab loom test-rust lint-rust
	@$(MAKE) --no-print-directory lint-python test-python test-stubs

test-rust: check-cargo
	@if cargo nextest --version >/dev/null 2>&1; then cargo nextest run --locked --no-fail-fast; else cargo test --locked --no-fail-fast; fi

# Its own folder: all of the crate is compiled for the checker. LOOM_MAX_PREEMPTIONS=4 looks further.
loom: check-cargo ## what threads share, in every order in which they can take their locks
	@RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom CARGO_PROFILE_TEST_OPT_LEVEL=2 CARGO_PROFILE_TEST_DEBUG=0 \
	  cargo test --locked --quiet -p tideloop-core --lib models

TASK_TESTS := $(addprefix tests/parity/test_,tasks.py asyncgens.py call_soon.py debug.py exceptions.py run.py threadsafe.py) \
  tests/leaks tests/fuzz tests/test_polling.py

TLS_TESTS := $(wildcard tests/parity/test_*tls*.py) $(addprefix tests/,test_tls_drivers.py test_tls_truncation.py leaks/test_tls.py \
  parity/test_closing.py parity/test_coalescing.py parity/test_hostile_peers.py parity/test_owners.py fuzz/test_transports.py)

test-python: build $(VENV)/.lab
	@$(PY) -m pytest -n $(JOBS) $(PYTEST_ARGS)
	@echo "make: once more on the portable selector"
	@TIDELOOP_SELECTOR=polling $(PY) -m pytest -n $(JOBS) --quiet --backend tideloop $(PYTEST_ARGS)
	@echo "make: what concerns tasks once more with stock tasks"
	@TIDELOOP_TASKS=stock $(PY) -m pytest -n $(JOBS) --quiet -k tideloop $(TASK_TESTS)
	@echo "make: what concerns TLS once more by Python's methods"
	@TIDELOOP_TLS=python $(PY) -m pytest -n $(JOBS) --quiet --backend tideloop $(TLS_TESTS)

test-real: build $(VENV)/.real ## real servers and clients on tideloop (TIDELOOP_REAL=required: skip none)
	@$(PY) -m pytest tests/real $(PYTEST_ARGS)

test-stubs: build
	@$(PY) -m mypy.stubtest tideloop._tideloop --mypy-config-file pyproject.toml --allowlist tests/stubtest-allow.txt --ignore-unused-allowlist

conformance: build ## CPython's own asyncio tests, from the interpreter that is installed
	@$(PY) -m tests.conformance

# The long form of the fuzzers, whose short form is in `make test`. FUZZ_MINUTES for the transports, and as many
# for the state machines.
FUZZ_MINUTES ?= 10
FUZZ_TARGETS := $(notdir $(basename $(wildcard fuzz/fuzz_targets/*.rs)))
FUZZ_SECONDS = $(shell awk 'BEGIN { printf "%d", $(FUZZ_MINUTES) * 60 / $(words $(FUZZ_TARGETS)) }')
# cargo-fuzz and the sanitizers want flags of a nightly compiler; this lets the installed one take them.
UNSTABLE := RUSTC_BOOTSTRAP=1

fuzz-tasks: build ## 20,000 random task programs against stock asyncio, as CI runs them
	@$(PY) -m tests.fuzz.tasks

fuzz: build ## random programs of tasks and of transports against stock asyncio, cargo-fuzz for the state machines
	@cargo fuzz --version >/dev/null 2>&1 || { echo "make: no cargo-fuzz; 'cargo install cargo-fuzz' gets it" >&2; exit 1; }
	@$(PY) -m tests.fuzz.tasks
	@$(PY) -m tests.fuzz transports --minutes $(FUZZ_MINUTES)
	@$(UNSTABLE) cargo fuzz build --sanitizer none
	@for target in $(FUZZ_TARGETS); do \
	  $(UNSTABLE) cargo fuzz run --sanitizer none $$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=1024 -verbosity=0 -print_final_stats=1 || exit 1; \
	done

# The folder of the sanitizers' runtimes; a toolchain of another system may have none.
SANITIZERS = $(shell rustc --print sysroot)/lib/rustlib/$(HOST)/lib
RUST_TESTS := --target $(HOST) -p tideloop-core -p tideloop-sys --lib --tests

# gcc's runtime of the address sanitizer, for an interpreter that was built without it.
LIBASAN = $(shell cc -print-file-name=libasan.so)
REFCHECK_PROGRAMS ?= 1000
SANITIZED := $(abspath target/address/python)

sanitize: build ## Rust tests under the address and thread sanitizers, Python tests on an extension with the former
	@ls $(SANITIZERS)/*_rt.asan.* $(SANITIZERS)/*_rt.tsan.* >/dev/null 2>&1 \
	  || { echo "make: this toolchain has no sanitizers for $(HOST)" >&2; exit 1; }
	@echo "make: address sanitizer"
	@$(UNSTABLE) RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/address \
	  cargo test --locked --quiet --no-fail-fast $(RUST_TESTS)
	@echo "make: thread sanitizer; the standard library is not instrumented, so races inside of it are not seen,"
	@echo "make: and what its test harness does is suppressed (tests/sanitize/thread.supp)"
	@$(UNSTABLE) RUSTFLAGS='-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer' CARGO_TARGET_DIR=target/thread \
	  TSAN_OPTIONS=suppressions=$(abspath tests/sanitize/thread.supp) \
	  cargo test --locked --quiet --no-fail-fast $(RUST_TESTS)
	@[ -e "$(LIBASAN)" ] || { echo "make: no libasan.so (gcc brings it): the extension was not tested" >&2; exit 1; }
	@echo "make: address sanitizer, the extension; leaks are not looked for, an interpreter always leaves some"
	@$(UNSTABLE) RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/address PYO3_PYTHON=$(abspath $(PY)) \
	  cargo build --locked --quiet --target $(HOST) -p tideloop-py
	@rm -rf $(SANITIZED) && mkdir -p $(SANITIZED) && cp -r python/tideloop $(SANITIZED) && rm -f $(SANITIZED)/tideloop/*.so
	@cp target/address/$(HOST)/debug/lib_tideloop.so \
	  $(SANITIZED)/tideloop/_tideloop$$($(PY) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
	@PYTHONPATH=$(SANITIZED) LD_PRELOAD=$(LIBASAN) PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16 \
	  $(PY) -m pytest --quiet -p no:cacheprovider -k tideloop tests/parity tests/leaks
	@PYTHONPATH=$(SANITIZED) LD_PRELOAD=$(LIBASAN) PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=16 \
	  $(PY) -m pytest --quiet -p no:cacheprovider tests/fuzz/test_transports.py

REFCHECKED := $(abspath target/refcheck/$(notdir $(VENV))/python)

refcheck: build ## tests on an extension that checks its references at every step
	@PYO3_PYTHON=$(abspath $(PY)) CARGO_TARGET_DIR=target/refcheck/$(notdir $(VENV)) \
	  cargo build --locked --quiet -p tideloop-py --features refcheck
	@rm -rf $(REFCHECKED) && mkdir -p $(REFCHECKED) && cp -r python/tideloop $(REFCHECKED) && rm -f $(REFCHECKED)/tideloop/*.so
	@cp target/refcheck/$(notdir $(VENV))/debug/lib_tideloop.so \
	  $(REFCHECKED)/tideloop/_tideloop$$($(PY) -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
	@PYTHONPATH=$(REFCHECKED) $(PY) -m pytest --quiet -p no:cacheprovider tests/leaks tests/parity/test_tasks.py tests/accelerate
	@PYTHONPATH=$(REFCHECKED) $(PY) -m tests.fuzz.tasks --programs $(REFCHECK_PROGRAMS)

soak: build ## a million tasks alive, a million cancelled, 10,000 children, and nothing left afterwards (1.5 GB)
	@$(PY) -m tests.soak
	@$(PY) -m pytest -m soak tests/leaks

memcheck: build ## tasks, futures and handles under valgrind
	@$(PY) -m tests.memcheck

lint: lint-rust lint-python ## rustfmt, clippy, ruff, mypy

lint-rust: check-cargo $(VENV_STAMP)
	@cargo fmt --all --check
	@cargo clippy --locked --quiet --all-targets -- -D warnings
	@cargo clippy --locked --quiet --all-targets -p tideloop-load $(LOAD_FEATURES) -- -D warnings
	@PYO3_PYTHON=$(abspath $(PY)) CARGO_TARGET_DIR=$(BUILD_DIR) cargo clippy --locked --quiet -p tideloop-py -- -D warnings

lint-python: build $(VENV)/.lab
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m mypy examples

fmt: build ## format both languages
	@cargo fmt --all
	@$(PY) -m ruff check --fix --quiet .
	@$(PY) -m ruff format --quiet .

clean: ## remove what make made
	@rm -rf target fuzz/target .venv $(VENV) results python/tideloop/*.so docs/api
	@find python tests examples -name __pycache__ -type d -exec rm -rf {} +
