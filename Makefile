# Two commands for a newcomer: `make demo` and `make test`. Everything they need they install themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export GPUFLEET_CACHE ?= $(HOME)/.cache/gpufleet-llm
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
PYTEST := .venv/bin/pytest
# Which molecule scenarios `make molecule` runs; empty: those of `make test`.
SCENARIOS ?=

.PHONY: help setup demo demo-down test lint units matrix sanity docs docs-check fleet molecule fleet-tests site long-tests nightly \
        bench tables lock gpu clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## the pinned tool chain in .venv (hash-locked)
	@tools/setup

demo: ## bare throw-away nodes to a model's answer, twice; needs root and podman (installed on Debian and Ubuntu)
	@tools/demo up

demo-down: ## remove all that the demo left
	@tools/demo down

test: setup ## what CI runs
	@tools/test

lint: setup ## ruff, mypy, ansible-lint (production), specs against defaults, changelog
	@tools/test lint

units: setup ## unit tests on this tool chain
	@tools/test units

matrix: setup ## unit tests on the oldest and the newest ansible-core
	@tools/test matrix

sanity: setup ## ansible-test sanity on an exported copy
	@tools/test sanity

docs: setup ## write the generated reference pages
	@tools/docs

docs-check: setup
	@tools/test docs

molecule: setup ## the scenarios on real nodes; SCENARIOS="git nginx" chooses
	@tools/test molecule $(SCENARIOS)

fleet-tests: setup ## faults and drift on real nodes
	@tools/test fleet-tests

site: setup ## site.yml on all distributions, the rolling upgrade
	@tools/test site

long-tests: setup ## a driver's and a toolkit's whole life; GPUFLEET_LONG="cuda nvidia_driver" for all of it
	@tools/test long-tests

nightly: setup ## everything of `make test`, plus the longest scenarios
	@tools/test all nightly

bench: setup ## measured comparisons, ratios printed
	@bench/run

gpu: setup ## the checks that need a real card
	@$(PYTEST) tests/gpu

tables: setup ## the tables of plugins/plugin_utils/data from their public sources, to be reviewed
	@.venv/bin/python tools/update_tables.py all --write

lock: ## write requirements/*.txt anew from requirements/*.in
	@tools/lock

clean: ## remove the tool chain (the cache stays)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
