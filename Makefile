# Each target does its own set-up on a fresh machine: a virtual environment, uv in it, then the hashed requirements.
# Where a container brings its own torch, use that Python and none of this: see README, "In a container".
PYTHON ?= python3
VENV ?= .venv
UV_VERSION = 0.13.9
BIN = $(VENV)/bin
CHECK = $(VENV)/check
COMPILE = $(BIN)/uv pip compile --universal --python-version 3.10 --generate-hashes --no-emit-index-url --quiet \
	--custom-compile-command "make requirements"
ARGS ?= -m precision=o0,o1,o2,o3,fp32 batch=1,8,32
export MLFLOW_DISABLE_TELEMETRY = true

.PHONY: sweep test check resolve audit sbom ui format requirements install clean help

sweep: $(BIN)/.ready  ## the main job, on whatever device there is; ARGS="..." for another sweep
	$(BIN)/python -m tcsweep $(ARGS)

test: $(BIN)/.ready  ## lint, types and tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

check: $(CHECK)/.ready test resolve audit sbom  ## what `make test` does, 64-bit Arm, known vulnerabilities, an SBOM, the wheel
	$(BIN)/uv build --wheel --quiet --no-build-isolation --python $(BIN)/python --out-dir dist

# A Jetson is 64-bit Arm: every package needs a wheel there, but antlr4, which is Python only and has none at all.
resolve: $(BIN)/.uv  ## ask the index for the requirements on 64-bit Arm, Python 3.10 and 3.12
	@for python in 3.10 3.12; do for file in requirements.txt requirements-image.txt; do \
		$(BIN)/uv pip compile --quiet --python-platform aarch64-manylinux_2_28 --python-version $$python \
			--only-binary :all: --no-binary antlr4-python3-runtime $$file --output-file /dev/null || exit 1; \
		echo "$$file resolves for 64-bit Arm, Python $$python"; \
	done; done

audit: $(CHECK)/.ready  ## known vulnerabilities in the requirements; CI_AUDIT=1: fail where that can't be told
	$(CHECK)/bin/python scripts/audit.py requirements.txt requirements-image.txt

sbom: $(CHECK)/.ready $(BIN)/.ready  ## a CycloneDX list of all that is installed here, dist/sbom.cdx.json
	@mkdir -p dist
	$(CHECK)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
		--output-file dist/sbom.cdx.json $(BIN)/python

ui: $(BIN)/.ready  ## the MLflow UI on the results, at a loopback address
	$(BIN)/python -m tcsweep ui

install: $(BIN)/.ready  ## the `tcsweep` command into the virtual environment
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .

format: $(BIN)/.ready  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# An image brings torch, torchvision and numpy, so its file leaves them out; its other versions are requirements.txt's
# wherever the image's numpy allows, hence the copy: uv keeps what it finds in the file that it is to write.
requirements: $(BIN)/.uv  ## compile the requirements files anew from pyproject.toml
	$(COMPILE) --extra dev --constraint constraints.txt pyproject.toml --output-file requirements.txt
	cp requirements.txt requirements-image.txt
	printf 'torch\ntorchvision\n' | $(COMPILE) --group image --excludes - --constraint constraints-image.txt \
		--no-emit-package numpy pyproject.toml --output-file requirements-image.txt
	$(COMPILE) --group pyproject.toml:check --output-file requirements-check.txt

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

$(CHECK)/.ready: $(BIN)/.uv requirements-check.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(CHECK)
	$(BIN)/uv pip install --quiet --python $(CHECK)/bin/python --require-hashes --requirement requirements-check.txt
	@touch $@
