# Every task of a developer. `make` alone prints the list. Each target installs what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
NPM := $(shell command -v npm)
UV := $(shell command -v uv)
# compiled sources are kept, whatever the shell says: a run of the tests starts a hundred interpreters
unexport PYTHONDONTWRITEBYTECODE
LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

help:  ## print this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/run  ## run a text-to-image and an image-to-image task over real HTTP, without a key
	$(BIN)/broker demo

serve: $(VENV)/run  ## serve the broker on http://127.0.0.1:8000
	$(BIN)/broker serve

# four workers on two cores: many tests wait for time to pass. They start in half the time when the tests are compiled,
# which mypy leaves a core for
test: $(VENV)/dev  ## run every gate: format, lint, types, layers, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pytest --collect-only > /dev/null & $(BIN)/mypy && wait
	$(BIN)/lint-imports
	$(BIN)/pytest -n 4 --dist loadfile --durations=20

faults: $(VENV)/dev  ## run kills, crashes, outages and takeovers at full length; prints a table; some minutes
	$(BIN)/python -m tests.support.fault_runs

e2e: $(VENV)/dev $(if $(NPM),tests/e2e/node_modules/.installed)  ## run every SDK at every provider, a browser and a front end, where installed
	$(BIN)/pytest tests/api/test_openapi.py -k browser
	$(BIN)/pytest tests/journeys/test_poller.py
	$(BIN)/python -m tests.dialects

bench: $(VENV)/dev  ## measure every path beside its reference; prints a table; four minutes
	$(BIN)/python -m tests.benchmarks

bench-long: $(VENV)/dev  ## the same at full size: a million stored tasks; an hour
	$(BIN)/python -m tests.benchmarks --long

bench-peers: $(VENV)/dev build/peers/.installed  ## measure LiteLLM, huey and the usual design beside the broker
	$(BIN)/python -m tests.benchmarks.peers

fuzz: $(VENV)/dev  ## send odd requests for five minutes and check every response against the OpenAPI document
	$(BIN)/python -m tests.support.fuzzing

format: $(VENV)/dev  ## format the code and apply safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock:  ## update the pinned dependencies (needs uv)
	uv pip compile $(LOCK_FLAGS) --upgrade tests/benchmarks/peers/requirements-peers.in \
		--output-file tests/benchmarks/peers/requirements-peers.lock
	uv pip compile $(LOCK_FLAGS) --upgrade --all-extras --group dev pyproject.toml --output-file requirements-dev.lock
	uv pip compile $(LOCK_FLAGS) --upgrade --all-extras --group build --constraints requirements-dev.lock \
		pyproject.toml --output-file requirements.lock

# run: the product's dependencies; dev: also those of the gates. A stamp is renewed when its lock file changes.
$(VENV)/run: requirements.lock pyproject.toml | $(BIN)/python
	$(call install,requirements.lock)

$(VENV)/dev: requirements-dev.lock pyproject.toml | $(BIN)/python
	$(call install,requirements-dev.lock)
	@touch $(VENV)/run

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --clear --without-pip $(VENV)

# an environment of their own: the broker does not depend on what it is compared with
build/peers/.installed: tests/benchmarks/peers/requirements-peers.lock
	$(PYTHON) -m venv --clear build/peers
	build/peers/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

# the lock file has hashes and names no registry
tests/e2e/node_modules/.installed: tests/e2e/package-lock.json
	cd tests/e2e && $(NPM) ci --ignore-scripts --no-audit --no-fund --omit-lockfile-registry-resolved
	@touch $@

# uv if installed, else the pip of the environment, else (Debian without ensurepip) the pip outside of it
PIP = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python,$$($(BIN)/python -m pip --version >/dev/null 2>&1 \
	&& echo $(BIN)/python -m pip install || echo $(PYTHON) -m pip --python $(BIN)/python install) \
	--quiet --disable-pip-version-check)

# the lock is complete; without --no-deps pip resolves extras again and fails when a newer version exists
define install
	$(PIP) --require-hashes --no-deps -r $(1)
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@
endef

.PHONY: help demo serve test faults e2e bench bench-long bench-peers fuzz format lock
