# make demo   set everything up, train three small models and write a report (a few minutes)
# make test   set everything up and run the tests
# make help   the rest
#
# PYTHON=/path/to/python3.12 chooses the interpreter; PIP_INSTALL_FLAGS adds to every `pip install`.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/sh

VENV := .venv
RUN := $(VENV)/bin/python
# Where the virtual environment stands, and what it holds, is in the name of the stamp: an install happens again when the
# project's requirements or its folder change, and never otherwise, so that a second `make` needs no network.
KEY := $(shell { cat pyproject.toml constraints.txt; pwd; } | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/.installed-$(KEY)
PIP_INSTALL_FLAGS ?=
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -lt 4 ] && echo $$n || echo 4)
TESTS ?= tests

.PHONY: help setup demo test lint format check clean

help:
	@echo 'make demo    set up, train three small models on real text, print a table and write a report'
	@echo 'make test    set up and run the tests (WORKERS=4, TESTS=tests/test_memory.py)'
	@echo 'make lint    formatter, linter, types and the order of the layers'
	@echo 'make format  lay the code out'
	@echo 'make check   lint and test'
	@echo 'make setup   the virtual environment in $(VENV) only (PYTHON=python3.12; remove $(VENV) to change it)'
	@echo 'make clean   remove what make and the tests made, except $(VENV), data/ and runs/'

setup: $(STAMP)

$(STAMP):
	@python=$$(sh .ci/find-python "$(PYTHON)") || exit 1; \
	if ! $(RUN) -m pip --version >/dev/null 2>&1; then \
	    echo "remanence: making $(VENV) with $$python"; \
	    "$$python" -m venv --clear $(VENV) || { \
	        echo "remanence: $$python cannot make a virtual environment: install its venv module (on Debian and Ubuntu: apt install python3-venv) and run make again." >&2; exit 1; }; \
	fi
	@echo "remanence: installing into $(VENV) (once; PyTorch is large, which may take minutes)"
	@$(RUN) -m pip install $$([ -t 1 ] || echo --quiet) --disable-pip-version-check $(PIP_INSTALL_FLAGS) --constraint constraints.txt --editable '.[all,dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: $(STAMP)
	@$(VENV)/bin/remanence demo $(DEMO)

test: $(STAMP)
	@$(RUN) -m pytest --numprocesses $(WORKERS) --dist worksteal $(TESTS)

lint: $(STAMP)
	$(RUN) -m pytest --quiet tests/test_house.py

format: $(STAMP)
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

check: lint test

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist build
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
