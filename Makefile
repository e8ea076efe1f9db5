# Each target does its own set-up on a fresh machine: a virtual environment, uv in it, then the hashed requirements.
# Where a container brings its own torch, use that Python and none of this: see README, "On a Jetson".
PYTHON ?= python3
VENV ?= .venv
UV_VERSION = 0.13.9
BIN = $(VENV)/bin
ARGS ?= -m precision=o0,o1,o2,o3,fp32 batch=1,8,32
STORE = sqlite:///$(CURDIR)/outputs/mlflow.db
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: sweep test check ui format requirements install clean help

sweep: $(BIN)/.ready  ## the main job, on whatever device there is; ARGS="..." for another sweep
	$(BIN)/python -m tcsweep $(ARGS)

test: $(BIN)/.ready  ## lint, types and tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

check: test  ## what `make test` does, and the wheel built
	$(BIN)/uv build --wheel --quiet --no-build-isolation --python $(BIN)/python --out-dir dist

ui: $(BIN)/.ready  ## the MLflow UI on the results, at a loopback address
	@echo "open http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning"
	$(BIN)/mlflow ui --backend-store-uri '$(STORE)' --port 5000

install: $(BIN)/.ready  ## the `tcsweep` command into the virtual environment
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .

format: $(BIN)/.ready  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

requirements: $(BIN)/.uv  ## compile requirements.txt anew from pyproject.toml
	$(BIN)/uv pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --quiet \
		--custom-compile-command "make requirements" --extra dev --constraint constraints.txt pyproject.toml --output-file requirements.txt

clean:  ## remove the virtual environment and caches; results stay
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache

help:
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/:/'

$(BIN)/.uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

$(BIN)/.ready: $(BIN)/.uv requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes --requirement requirements.txt
	@touch $@
