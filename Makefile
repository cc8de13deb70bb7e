# Verbs of this project. `make demo` and `make test` set everything up by themselves.
SHELL := /bin/bash
PYTHON := .venv/bin/python
WORKERS ?= 2
SECONDS_OF_FUZZING ?= 60

.PHONY: setup demo test test-long fuzz audit emulators emulators-stop check fmt lock lint types

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

infra-check: setup
	@$(PYTHON) -m pytest tests/infra -q
	@checked="$$(find infra -name '*.bicep' | wc -l) Bicep files: read, held against the code and the security rules"; \
	  if command -v bicep > /dev/null; then \
	    bicep build infra/main.bicep --stdout > /dev/null && bicep lint infra/main.bicep || exit 1; \
	    echo "infra-check: $$checked, compiled and linted"; \
	  else echo "infra-check: $$checked; not compiled, since there is no 'bicep' program on the PATH"; fi

fuzz: setup
	@$(PYTHON) -c 'import atheris' 2> /dev/null || { \
	  echo "fuzz: installing atheris (it is in no lock file: not every system has a wheel of it)"; \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check --only-binary :all: 'atheris>=3.1,<4' \
	    || echo "fuzz: atheris cannot be installed here; hypothesis makes the inputs instead"; }
	@$(PYTHON) -m tests.fuzz --seconds $(SECONDS_OF_FUZZING)

# Looked up at their newest known advisories, so not part of `make check`; the tools come in their own environments.
audit: setup
	@.venv/bin/uv tool run --quiet pip-audit@2.9.0 --requirement requirements.txt --require-hashes --disable-pip --strict --desc off
	@.venv/bin/uv tool run --quiet bandit@1.9.4 --quiet --configfile pyproject.toml --severity-level medium --recursive shared functions agent local deploy function_app.py
	@git ls-files | grep --invert-match --extended-regexp '^tests/|package-lock.json$$|^requirements|signatures.yaml$$' \
	  | xargs .venv/bin/uv tool run --quiet --from detect-secrets==1.5.0 detect-secrets-hook
	@echo "audit: no known vulnerability, nothing unsafe, no secret"

# Microsoft's Service Bus emulator and Azurite, for those who have Docker.
emulators: setup
	@$(PYTHON) -m local.emulator .local/emulator/Config.json
	@MSSQL_SA_PASSWORD="$${MSSQL_SA_PASSWORD:-Local-$$(openssl rand -hex 12)}" docker compose --file deploy/emulators/compose.yaml up --detach

emulators-stop:
	@MSSQL_SA_PASSWORD=unused docker compose --file deploy/emulators/compose.yaml down

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
