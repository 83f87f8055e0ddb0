# One word per chore. `make` alone prints them.

VENV := .venv
SOLLOL := .venv-sollol
PYTHON := $(VENV)/bin/python
GAELP := $(VENV)/bin/gaelp
PIP := $(PYTHON) -m pip --disable-pip-version-check --no-input --quiet --cache-dir .cache/pip
SOLLOL_PIP := $(SOLLOL)/bin/python -m pip --disable-pip-version-check --no-input --quiet --cache-dir .cache/pip
PYTEST := $(PYTHON) -m pytest
LOCK := $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --annotation-style line --custom-compile-command "make lock"
# processes for `make test`: most of its time is waiting for real servers
JOBS ?= 3
# more arguments for a chore: make test ARGS="-k stream", make lock ARGS=--upgrade
ARGS ?=

# A caller's own paths must not reach into the virtual environment; `up` alone hands them on, to its worker.
export PYTHONPATH_OF_CALLER := $(value PYTHONPATH)
unexport PYTHONPATH PYTHONHOME
# Else every program would compile everything that it imports, and a suite starts hundreds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo up test faults acceptance lint bench sollol lock clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## make .venv with every program and the locked dependencies

demo: setup ## run the whole system once on this machine, show it, leave nothing running
	@$(GAELP) demo run $(ARGS)

up: setup ## keep the whole system running here until Ctrl-C
	@PYTHONPATH="$$PYTHONPATH_OF_CALLER" $(GAELP) demo up $(ARGS)

test: setup ## unit, contract and integration tests
	@$(PYTEST) -n $(JOBS) --dist loadfile tests/unit tests/contracts tests/integration $(ARGS)

faults: setup ## the fault suites: killed, frozen, cut off
	@$(PYTEST) -n $(JOBS) --dist loadfile tests/faults $(ARGS)

acceptance: setup ## the whole product as its users run it: the demo, the cluster's parts, the pages' commands
	@$(PYTEST) -n 2 --dist loadfile tests/acceptance $(ARGS)

lint: setup ## style, format and types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/mypy tests/typing/api.py

bench: setup ## measure this machine
	@$(PYTHON) benchmarks/run.py $(ARGS)

# An environment of its own: SOLLOL brings a hundred packages that nothing else here needs (docs/nodes.md).
sollol: $(SOLLOL)/.installed ## install SOLLOL beside, run the router suite with it, show it at work
	@$(SOLLOL)/bin/python -m pytest tests/integration/test_sollol.py tests/faults/routers \
		-k sollol $(ARGS)
	@$(SOLLOL)/bin/python benchmarks/with_sollol.py

lock: setup ## pin every dependency anew (ARGS=--upgrade takes newer versions)
	@$(LOCK) $(ARGS) --extra dev pyproject.toml --output-file requirements/dev.txt
	@$(LOCK) --constraints requirements/dev.txt --extra worker --extra postgres --extra otel --extra api pyproject.toml \
		--output-file requirements/worker.txt
	@$(LOCK) --constraints requirements/dev.txt pyproject.toml --output-file requirements/base.txt
	@$(LOCK) --constraints requirements/dev.txt --extra sollol pyproject.toml requirements/sollol.in \
		--output-file requirements/sollol.txt
	@$(LOCK) --constraints requirements/dev.txt requirements/build.in --output-file requirements/build.txt

clean: ## remove all that make has put into this checkout, downloads too
	rm -rf $(VENV) $(SOLLOL) .cache .run dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# A usable environment is kept; one whose Python has gone is made anew.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && touch $@ && exit 0; \
	for name in python3.13 python3.12 python3.11 python3; do \
		$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
		$$name -c 'import ensurepip, venv' 2>/dev/null || { bare=$$name; continue; }; \
		echo "making $(VENV) with $$($$name --version)"; \
		$$name -m venv --clear $(VENV) && touch $@; exit; \
	done; \
	if [ -n "$$bare" ]; then echo "$$bare has no ensurepip, so it cannot make a virtual environment:" \
		"install it (Debian, Ubuntu: apt-get install python3-venv) and run make again." >&2; \
	else echo "gaelp-tasks needs Python 3.11 or newer, and found none:" \
		"put python3.11, python3.12 or python3.13 on PATH and run make again." >&2; fi; \
	exit 1

# --no-compile halves the time: Python compiles what is used when it is used.
$(VENV)/.locked: $(VENV)/.made requirements/build.txt requirements/dev.txt
	@echo "installing the locked dependencies"
	@$(PIP) install --require-hashes --no-deps --no-compile -r requirements/build.txt -r requirements/dev.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(SOLLOL)/.installed: $(VENV)/.made requirements/build.txt requirements/sollol.txt
	@echo "installing SOLLOL and all that it needs into $(SOLLOL), which takes minutes"
	@$(PYTHON) -m venv --clear $(SOLLOL)
	@$(SOLLOL_PIP) install --require-hashes --no-deps --no-compile -r requirements/build.txt -r requirements/sollol.txt
	@$(SOLLOL_PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
