# `make repro` builds everything and `make test` tests everything, on a machine with Python 3.11, git, make and g++.
# Both install what is missing into .venv first; a second run installs nothing.

PYTHON ?= python3.11
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro test lint lock check

repro: $(VENV)/.installed
	dvc repro

test: $(VENV)/.installed
	ruff format --check .
	ruff check .
	mypy
	pytest

# The exact versions of everything that pyproject.toml allows, for both commands.
lock:
	rm -rf $(VENV)/lock
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install --quiet --upgrade pip
	$(VENV)/lock/bin/pip install --quiet . --group dev
	$(VENV)/lock/bin/pip freeze --exclude $$($(VENV)/lock/bin/python -c "import tomllib; print(tomllib.load(open('pyproject.toml', 'rb'))['project']['name'])") > requirements.lock
