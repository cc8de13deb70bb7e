# Verbs of this project. `make demo` and `make test` set everything up by themselves.
SHELL := /bin/bash
PYTHON := .venv/bin/python
WORKERS ?= 2
SECONDS_OF_FUZZING ?= 60

.PHONY: setup demo test test-long fuzz check fmt lock lint types

setup: .venv/.ready local/node_modules/.ready

.venv/.ready: requirements-dev.txt .python-version
	@python=$$(command -v python3.13 || true); \
	  if [ -z "$$python" ] || ! "$$python" --version >/dev/null 2>&1; then echo "Python 3.13 is needed: install it, so that 'python3.13' is found."; exit 2; fi; \
	  [ -x $(PYTHON) ] || { echo "setup: creating .venv with $$("$$python" --version)"; "$$python" -m venv .venv; }
	@echo "setup: installing Python packages (half a minute the first time)"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt 2> .venv/pip.log || { cat .venv/pip.log; exit 1; }
	@touch $@

local/node_modules/.ready: local/package.json local/package-lock.json
	@command -v npm >/dev/null || { echo "Node.js 20 or newer is needed: install it, so that 'npm' is found."; exit 2; }
	@echo "setup: installing Azurite (a quarter of a minute the first time)"
	@cd local && npm ci --silent --no-audit --no-fund > node_modules.log 2>&1 || { cat node_modules.log; exit 1; }
	@rm -f local/node_modules.log
	@touch $@

demo: setup
	@$(PYTHON) -m agent demo

test: setup
	@$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile -m "not long" -q

test-long: setup
	@$(PYTHON) -m pytest -n $(WORKERS) --dist load -m long -q

fuzz: setup
	@$(PYTHON) -c 'import atheris' 2> /dev/null || { \
	  echo "fuzz: installing atheris (it is in no lock file: not every system has a wheel of it)"; \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check --only-binary :all: 'atheris>=3.1,<4' \
	    || echo "fuzz: atheris cannot be installed here; hypothesis makes the inputs instead"; }
	@$(PYTHON) -m tests.fuzz --seconds $(SECONDS_OF_FUZZING)

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/lint-imports

types: setup
	@.venv/bin/mypy .

check: lint types test

fmt: setup
	@.venv/bin/ruff check --fix .
	@.venv/bin/ruff format .

lock: setup
	@.venv/bin/uv pip compile --quiet --python-version 3.13 --generate-hashes --no-emit-index-url --no-header requirements.in -o requirements.txt
	@.venv/bin/uv pip compile --quiet --python-version 3.13 --generate-hashes --no-emit-index-url --no-header requirements-dev.in -o requirements-dev.txt
