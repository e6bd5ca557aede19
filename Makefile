# What a person does with this tree. Plain `make` lists the targets.
# Needs Rust, a C compiler, Python 3.11 or newer, and git.

CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
HEARTH := $(CARGO_TARGET_DIR)/release/hearth
PYTEST_FLAGS ?= -q
BENCH_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo up test test-rust test-python lint format lockfile clippy docs scripts licences deny bench

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Build everything and show the whole path: cold, warm, after crashes, with the store gone
	cargo build --release -p hearth
	$(HEARTH) demo

up: ## Build and start the stack: a store node, two engines, a router; Ctrl-C ends it
	cargo build --release -p hearth
	$(HEARTH) up

test: test-rust test-python ## Run all tests: Rust, then Python clients against a running stack

test-rust:
	cargo test --release --workspace --no-fail-fast

# Python clients against a stack that the tests start themselves.
test-python: .venv/ready
	cargo build --release -p hearth
	HEARTH=$(HEARTH) .venv/bin/python -m pytest $(PYTEST_FLAGS) deploy/tests

.venv/ready: deploy/tests/requirements.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r deploy/tests/requirements.txt
	touch $@

lint: format lockfile clippy docs scripts licences ## Check formatting, lints, documentation, scripts, licences of dependencies

format:
	cargo fmt --all --check

lockfile:
	@cargo metadata --locked --format-version 1 >/dev/null || { echo "Cargo.lock is not what Cargo.toml asks for: commit it" >&2; exit 1; }

# In release mode, to share build scripts and macros with the tests.
clippy:
	cargo clippy --release --workspace --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

scripts:
	for script in .ci/run benches/peers/setup; do bash -n $$script || exit 1; done
	python3 -m compileall -q deploy/tests benches/peers

licences:
	@if cargo deny --version >/dev/null 2>&1; then $(MAKE) --no-print-directory deny; else \
		echo "SKIPPED: cargo-deny is not installed; licences and sources were not checked" >&2; \
		echo "         (cargo install --locked cargo-deny, then make deny)" >&2; fi

# Advisories need the network, so they are a check of their own: cargo deny check advisories.
deny:
	cargo deny --all-features check --hide-inclusion-graph bans licenses sources

bench: ## Measure everything against peers and limits (BENCH_FLAGS=--quick for a short one)
	cargo run --release -q -p hearth-benches -- all $(BENCH_FLAGS)
