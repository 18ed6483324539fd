# Everything a developer does. `make` alone shows this list. No target needs another one first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv)
LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

help:  ## show this list
	@awk -F':.*## ' '/^[a-z0-9]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/run  ## one text-to-image and one image-to-image task through real HTTP, no key needed
	$(BIN)/broker demo

serve: $(VENV)/run  ## the broker on http://127.0.0.1:8000
	$(BIN)/broker serve

test: $(VENV)/dev  ## every gate: format, lint, types, layers, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadfile --durations=20

faults: $(VENV)/dev  ## kills, crashes, outages and takeovers at full length, and a table of promises; takes some minutes
	$(BIN)/python -m tests.support.fault_runs

e2e: $(VENV)/dev  ## in a real browser, and an old front end in Node, where there are any
	$(BIN)/pytest tests/api/test_openapi.py -k browser
	$(BIN)/pytest tests/journeys/test_poller.py

bench: $(VENV)/dev  ## what it can do on this machine, as tables; takes some minutes
	$(BIN)/python -m tests.benchmarks

fuzz: $(VENV)/dev  ## odd requests for five minutes, every answer held against the API description
	$(BIN)/python -m tests.support.fuzzing

format: $(VENV)/dev  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:  ## pin the dependencies anew (needs uv)
	uv pip compile $(LOCK_FLAGS) --upgrade --all-extras --group build pyproject.toml --output-file requirements.lock
	uv pip compile $(LOCK_FLAGS) --upgrade --all-extras --group dev pyproject.toml --output-file requirements-dev.lock

# run: what the product needs; dev: that and the gates. A stamp is made anew when its lock file changes.
$(VENV)/run: requirements.lock pyproject.toml | $(BIN)/python
	$(call install,requirements.lock)

$(VENV)/dev: requirements-dev.lock pyproject.toml | $(BIN)/python
	$(call install,requirements-dev.lock)
	@touch $(VENV)/run

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --clear --without-pip $(VENV)

# uv if there is one, else the pip of the environment, else (where Debian keeps ensurepip apart) the pip outside of it
PIP = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$$($(BIN)/python -m pip --version >/dev/null 2>&1 \
	&& echo $(BIN)/python -m pip install || echo $(PYTHON) -m pip --python $(BIN)/python install) \
	--quiet --disable-pip-version-check)

# the lock is complete; asked to resolve it again, pip stumbles over extras as soon as something newer is out
define install
	$(PIP) --require-hashes --no-deps -r $(1)
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
endef

.PHONY: help demo serve test faults e2e bench fuzz format lock
