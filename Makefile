# Retrace. `make` alone lists the targets.
PYTHON ?= python3.11
BIN := .venv/bin
UV := $(BIN)/uv
LOCK := $(UV) pip compile --quiet --python-version 3.11 --universal --generate-hashes --no-header --no-annotate
SYNC := $(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help demo demo-reset test up down lint lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: .venv/.ready ## Retrain two models on real data, twice, and look at the versions
	@$(BIN)/retrace demo

demo-reset: .venv/.ready ## Take the demo back: versions, runs, data, state
	@$(BIN)/retrace demo-reset

up: .venv/.ready ## Start Airflow and the MLflow UI; Ctrl-C or make down ends all of it
	@$(BIN)/retrace up

down: .venv/.ready ## End what make up started
	@$(BIN)/retrace down

test: .venv/.ready-tests ## Run every test, with real servers
	@command -v ssh-keygen >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -qq --yes openssh-client; } || \
		{ echo "error: ssh-keygen is not here, which tests of signatures use; install openssh-client" >&2; exit 1; }
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: .venv/.ready-tests ## ruff, and mypy --strict on the engine
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

lock: .venv/.ready ## Lock the requirements anew from their inputs: stages, then Airflow's side, then tests
	@# All inputs are resolved together first: one scikit-learn trains, registers and serves.
	@$(LOCK) --upgrade pyproject.toml pipeline/requirements.in -o .venv/joint.txt
	@$(LOCK) --upgrade pipeline/requirements.in -c .venv/joint.txt -o pipeline/requirements.txt
	@$(LOCK) --upgrade pyproject.toml -c pipeline/requirements.txt -o requirements.txt
	@$(LOCK) --upgrade tests/requirements.in -c requirements.txt -o tests/requirements.txt
	@echo "locked: pipeline/requirements.txt requirements.txt tests/requirements.txt"

clean: ## Remove what can be made again: the virtual environment and var/, but for the DVC remote and the demo's source
	rm -rf .venv $(filter-out var/remote var/source.db,$(wildcard var/*))

.venv/bin/uv:
	@echo "making .venv"
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not here; install Python 3.11 or set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

.venv/.ready: requirements.txt pyproject.toml | .venv/bin/uv
	@echo "installing requirements.txt"
	@$(SYNC) requirements.txt
	@$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@rm -f .venv/.ready-tests
	@touch $@

.venv/.ready-tests: .venv/.ready tests/requirements.txt
	@echo "installing tests/requirements.txt"
	@$(SYNC) requirements.txt tests/requirements.txt
	@$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@touch $@
