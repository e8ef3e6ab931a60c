# SPDX-License-Identifier: Apache-2.0
# What people type. `make` alone lists the verbs. CI runs `make check`, and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements.lock
PEERS := build/peers
EXTRAS := server,cluster,worker,experiments,dev
# One PyTorch for everybody, installed first: the rest of the lock then keeps it.
TORCH := $(shell grep -h '^torch==' $(LOCK) 2>/dev/null || echo torch)

.DEFAULT_GOAL := help
.PHONY: help setup demo compare experiments-quick bench-peers bench-quick test test-long check lock clean

help: ## List the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(VENV)/.installed ## Make .venv and install everything into it; quick when there is nothing to do
	@echo "Everything is installed in $(VENV)."

demo: $(VENV)/.installed ## Train a real federation on this machine; options by ARGS="--rounds 5"
	@$(BIN)/fed-sophia demo $(ARGS)

compare: $(VENV)/.installed ## The demo with all three algorithms, side by side
	@$(BIN)/fed-sophia demo --compare $(ARGS)

experiments-quick: $(VENV)/.installed ## Compare five algorithms on two data sets, in minutes; plots and tables in build/
	@$(BIN)/fed-sophia experiment run digits quick-mlp-shards2 --in-process --results build/experiments-quick $(ARGS)

bench-peers: $(PEERS)/flower/.installed $(PEERS)/nvflare/.installed ## Install Flower and NVFlare, to measure them with python -m benchmarks.peers
	@echo "Flower and NVFlare are installed below $(PEERS)."

bench-quick: $(VENV)/.installed ## Say within a minute whether a round costs more than was accepted; ARGS=--accept accepts what it costs
	@$(BIN)/python -m benchmarks.quick $(ARGS)

test: $(VENV)/.installed ## Run the tests
	$(BIN)/pytest $(ARGS)

test-long: $(VENV)/.installed ## Kill server and workers 200 times at random moments; send an update, and wait, for minutes
	FED_SOPHIA_LONG=1 $(BIN)/pytest tests/system/crash tests/system/network/test_resumption.py tests/system/network/test_nginx.py --kills 200 --timeout 1500 $(ARGS)

check: $(VENV)/.installed ## What CI runs: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

lock: ## Renew requirements.lock from a fresh virtual environment
	@$(call require_python)
	@set -eu; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	"$(PYTHON)" -m venv "$$folder/venv"; \
	"$$folder/venv/bin/pip" install --quiet --upgrade pip; \
	"$$folder/venv/bin/pip" install --quiet $(TORCH); \
	"$$folder/venv/bin/pip" install --quiet -e '.[$(EXTRAS)]'; \
	{ echo "# Versions known to work together. Written by 'make lock'."; \
	  "$$folder/venv/bin/pip" freeze --exclude-editable \
	  | sed -E 's/^([A-Za-z0-9._-]+==[^+]+).*$$/\1/' | grep -E '^[A-Za-z0-9._-]+==[^ @]+$$' | LC_ALL=C sort -f; \
	} > "$$folder/lock"; \
	cp "$$folder/lock" $(LOCK); echo "$(LOCK): $$(grep -c == $(LOCK)) pins"

clean: ## Remove .venv and every cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Removed first and written last: an installation that failed is tried again, wholly.
$(VENV)/.installed: pyproject.toml $(LOCK)
	@$(call require_python)
	@rm -f $@
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Making $(VENV) failed. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Installing into $(VENV); the first time this takes some minutes."
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet $(TORCH) -c $(LOCK)
	@$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]' -c $(LOCK)
	@touch $@

# Each peer in an environment of its own: what it needs does not go with what we need.
$(PEERS)/%/.installed: benchmarks/peers/%.txt
	@$(call require_python)
	@rm -f $@
	@test -x $(@D)/bin/python || "$(PYTHON)" -m venv $(@D) || { rm -rf $(@D); exit 1; }
	@echo "Installing $* into $(@D)."
	@$(@D)/bin/python -m pip install --quiet -r $<
	@touch $@

define require_python
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "fed-sophia needs Python 3.11 or newer; '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1 || true)." >&2; \
  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
endef
