# The house's commands; each works on a machine that has only Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
LOCKED := shared/pyproject.toml $(sort $(wildcard services/*/pyproject.toml)) dev/pyproject.toml
LOCK := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header
CODE := shared services dev deploy charts tests conftest.py

.PHONY: help up setup check lint format types contracts unit unit-one unit-two test test-fleets test-code test-all e2e-compose charts fuzz bench demo fmt lock
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

up:  ## start the whole fleet on this machine; Ctrl-C stops it
	@$(PYTHON) dev up

setup:  ## make .venv with everything for working on the house
	@$(PYTHON) dev setup --dev

check: setup  ## format, lint, types, import contracts and unit tests; under 30 s warm
	@$(MAKE) --no-print-directory -j3 --output-sync=target lint unit

lint: format types contracts

format:
	@$(BIN)/ruff format --check -q $(CODE) || { echo "make fmt puts the form right"; exit 1; }
	@$(BIN)/ruff check -q --output-format concise $(CODE)

types:
	@$(BIN)/mypy --no-error-summary shared services dev charts/generate.py

contracts:
	@$(BIN)/lint-imports --no-logo | tail -n 3

# Two runs of equal length side by side, not one on two workers: each worker would import and collect everything.
HALF := services/users services/gateway services/compute
unit: unit-one unit-two

unit-one:
	@$(BIN)/python -m pytest -q -m "not slow" $(HALF)

unit-two:
	@$(BIN)/python -m pytest -q -m "not slow" shared dev tests/contracts tests/bench $(filter-out $(HALF),$(patsubst %/pyproject.toml,%,$(sort $(wildcard services/*/pyproject.toml))))

# Fleets and faults wait most of the time, so they run beside the tests that compute.
FLEETS := tests/chaos tests/e2e tests/isolation
test: setup lint  ## everything that needs no Docker: lint, unit, contract, isolation, e2e, one pass of each fault; <= 15 min
	@$(MAKE) --no-print-directory -j2 --output-sync=target test-fleets test-code

test-fleets:
	@$(BIN)/python -m pytest -q $(FLEETS)

test-code:
	@$(BIN)/python -m pytest -q shared services dev tests $(patsubst %,--ignore=%,$(FLEETS))

test-all: test e2e-compose charts fuzz  ## test, the containers, the chart, and each fault twice more
	@$(BIN)/python -m pytest -q tests/chaos tests/e2e
	@$(BIN)/python -m pytest -q tests/chaos tests/e2e

e2e-compose: setup  ## the e2e suite, kills, cuts and an upgrade on the fleet in containers; skipped where no engine answers
	@$(BIN)/python -m pytest -q tests/compose

charts: setup  ## the Helm chart: lint, schemas, invariants, autoscalers; skipped where helm is missing
	@$(BIN)/python -m pytest -q tests/charts

fuzz: setup  ## the OpenAPI document, tried through the gateway by schemathesis
	@$(BIN)/python -m pytest -q tests/fuzz

bench: setup  ## measure ours beside its peers: make bench NAME=gateway [ARGS="--only ours-all,envoy --rounds 3"]
	@$(BIN)/python -m tests.bench $(NAME) $(ARGS)

demo: setup  ## a tour through the gateway URL; non-zero on any failure
	@$(BIN)/python -m dev.demo

fmt: setup  ## put the code into the house's form
	@$(BIN)/ruff format -q $(CODE)
	@$(BIN)/ruff check -q --fix $(CODE)

lock: setup  ## renew requirements.lock and requirements-dev.lock from the pyproject files
	$(LOCK) $(LOCKED) -o requirements.lock
	$(LOCK) $(LOCKED) --group pyproject.toml:dev -c requirements.lock -o requirements-dev.lock
