# `make repro` builds everything and `make test` tests everything, on a machine with Python 3.11, git, make and g++.
# Both install what is missing into .venv first; a second run installs nothing.

PYTHON ?= python3.11
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro test lock

repro: $(VENV)/installed
	dvc repro

test: $(VENV)/installed
	ruff format --check .
	ruff check .
	mypy
	pytest --numprocesses 2 --dist loadfile

$(VENV)/installed: requirements.lock
	@command -v g++ >/dev/null || { echo "error: g++ is missing: AOTInductor compiles C++; install it (Debian: apt install g++)" >&2; exit 1; }
	@command -v git >/dev/null || { echo "error: git is missing; install it (Debian: apt install git)" >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing: Python 3.11 is needed; give another with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "error: $(PYTHON) is $$($(PYTHON) --version), Python 3.11 is needed; give another with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check --quiet --requirement requirements.lock
	@touch $@

# The exact versions of all that pyproject.toml allows, for both commands above.
lock: $(VENV)/installed
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --no-header --no-annotate \
		--quiet --upgrade --output-file requirements.lock
