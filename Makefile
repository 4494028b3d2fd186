# The house's commands; each works on a machine that has only Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
LOCKED := shared/pyproject.toml $(sort $(wildcard services/*/pyproject.toml)) dev/pyproject.toml
LOCK := $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

.PHONY: help up test check lock setup demo fmt

help:  ## list the commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

up:  ## start the whole fleet on this machine; Ctrl-C stops it
	@$(PYTHON) dev up

setup:  ## make .venv with everything for working on the house
	@$(PYTHON) dev setup --dev

lock: setup  ## renew requirements.lock and requirements-dev.lock from the pyproject files
	$(LOCK) $(LOCKED) -o requirements.lock
	$(LOCK) $(LOCKED) --group pyproject.toml:dev -c requirements.lock -o requirements-dev.lock
