# The interface: `make demo` and `make test` do all set-up by themselves; see README.md.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test check images qemu reference references stock bench mechanisms nightly nightly-tests nightly-matrix browser screenshots clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## Debian packages, the virtual environment, the guest image
	@$(BIN)/switchover image build --quiet

$(STAMP): pyproject.toml tools/setup
	@tools/setup $(VENV)
	@touch $@

demo: setup ## none and tap-handover, interleaved, on real guests
	@$(BIN)/switchover demo

test: setup check reference stock ## all tests but the nightly ones; builds the reference QEMU once
	@$(BIN)/pytest tests/net tests/vm tests/migration tests/build tests/browser

check: $(STAMP) ## ruff, mypy, import layers, unit tests: seconds, no root, no VM
	@$(BIN)/ruff check harness tests bench
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache 2>&1 | tail -n 4; test $${PIPESTATUS[0]} -eq 0
	@$(BIN)/pytest -q tests/unit

browser: ## Chromium, for the tests that open a report (skipped without it)
	@tools/setup-browser

# RUNS: run or campaign directories whose report is to be seen in the README.
screenshots: $(STAMP) browser ## the README's pictures of a report: make screenshots RUNS=results/...
	@$(BIN)/python tools/screenshots docs/images $(RUNS)

images: $(STAMP) ## the guest image
	@$(BIN)/switchover image build

# A host that can't build it (exit code 3: the message says what it lacks) runs the tests without: those that need it are skipped.
reference: $(STAMP)
	@$(BIN)/switchover qemu build reference || test $$? -eq 3

# A stock QEMU that migrates a guest under TCG without losing what it writes: for hosts without KVM whose own is too old for that.
stock: $(STAMP)
	@$(BIN)/switchover qemu fetch 10.0 || test $$? -eq 3

qemu: $(STAMP) ## the reference QEMU: Debian's source and our series
	@$(BIN)/switchover qemu build reference

references:
	@command -v tshark >/dev/null && ls /usr/lib{exec,/qemu}/virtiofsd 2>/dev/null | grep -q . || WITH_REFERENCES=1 tools/setup $(VENV) || test $$? -eq 3

bench: setup references ## speed, as ratios within one run
	@$(BIN)/python -m bench

# `none` comes twice: with the host's QEMU, and with the build that the mechanisms need (a new TAP on the same host); netpass too: with hold-back
# the destination's QEMU keeps what comes directly until all that was passed is in the guest, so that nothing overtakes.
mechanisms: setup reference ## all mechanisms in one interleaved campaign: the table of README.md (some 15 minutes)
	@$(BIN)/switchover compare tcp-request-none tcp-request-none:qemu.source=reference,qemu.destination=reference \
		tcp-request-tap-handover tcp-request-netpass tcp-request-netpass:migration.parameters.netpass-hold-back=500 \
		tcp-request-redirect tcp-request-local-tap \
		--set timing.settle_s=1 --set timing.tail_s=1.5 --repeat 20

nightly: ## the long campaigns, and the matrix of every way to migrate
	@$(MAKE) --no-print-directory nightly-tests; status=$$?; $(MAKE) --no-print-directory nightly-matrix && exit $$status

# PART: folders or files of tests, or cells of the matrix, instead of all.
nightly-tests: setup reference references stock ## the long tests alone, or some: make nightly-tests PART=tests/vm
	@$(BIN)/pytest $(or $(PART),tests) -m nightly

nightly-matrix: setup reference stock ## the matrix alone, or a part: make nightly-matrix PART=failure
	@$(BIN)/switchover matrix $(PART)

clean: ## the virtual environment (caches and results stay)
	rm -rf $(VENV)
