# Every target sets up what it needs: a virtual environment in .venv with the pinned dependencies of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo mlflow test lint format types unit slow chaos cluster cluster-down clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sort | awk -F ':.*  ## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Equihand needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; use make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the dependencies into $(VENV) (about 6 GB, once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,detect,export]"
	@touch $(READY)

setup: $(READY)  ## create .venv with everything in it

demo: $(READY)  ## the whole pipeline on this machine, from rendered hand video to report.html (make demo ARGS=--fresh)
	@$(BIN)/python -m jobs.demo $(ARGS)

mlflow: $(READY)  ## open MLflow's pages on the demo's runs (http://127.0.0.1:5000)
	@$(BIN)/python -m mlflow ui --backend-store-uri sqlite:///demo/mlflow.db --host 127.0.0.1 --port 5000

test: lint types unit  ## all checks: lint, types, tests

lint: $(READY)  ## ruff: lint and format check
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(READY)  ## ruff: mend what can be mended
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(READY)  ## mypy
	@$(BIN)/mypy

unit: $(READY)  ## pytest (make unit ARGS="tests/test_views.py -x")
	@$(BIN)/python -m pytest $(ARGS)

slow: $(READY)  ## pytest: what takes minutes, apart from the other tests
	@$(BIN)/python -m pytest -m slow $(ARGS)

chaos: $(READY)  ## pretraining under faults, with three seeds (half an hour; make chaos ARGS="--seeds 4")
	@$(BIN)/python -m tests.chaos $(ARGS)

cluster: $(READY)  ## start a local cluster, one head and two worker nodes, to rehearse submissions
	@$(BIN)/python -m cluster.local up

cluster-down: $(READY)  ## stop the local cluster
	@$(BIN)/python -m cluster.local down

clean:  ## remove what runs left behind: caches and the demo's files
	@rm -rf demo .pytest_cache .ruff_cache .mypy_cache build *.egg-info
