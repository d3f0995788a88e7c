# `make repro` builds and proves everything that ships, and `make test` tests it, on a machine with Python 3.11 to 3.13,
# git, make and g++. Both install what is missing into .venv first; a second run installs nothing.

PYTHON ?= $(or $(shell for name in python3.11 python3.12 python3.13; do $$name -c '' 2>/dev/null && echo $$name && break; done),python3)
VENV := .venv
PIP = $(VENV)/bin/pip install --disable-pip-version-check --quiet
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro install report studies seeds docs test test-fast campaign check lock

repro: $(VENV)/installed
	dvc repro

install: $(VENV)/installed

# What is measured beside it and does not ship: other people's exports, fewer bits, settings, faults.
studies: $(VENV)/installed
	dvc repro studies/dvc.yaml

# The page of what has been built so far, and no other stage.
report: $(VENV)/installed
	@dvc repro --quiet --single-item machine report
	@echo results/report.html

# The tables in README.md and docs, from the results at hand. With --check, cog says what is not up to date.
docs: $(VENV)/installed
	cog -P -r README.md docs/*.md

# Everything that a change may break.
test: check
	pytest --numprocesses 2 --dist loadfile

# Everything that takes seconds.
test-fast: check
	pytest --numprocesses 2 --dist loadfile -m "not slow"

# What takes hours: every policy trained with other seeds than the one that it ships with.
seeds: $(VENV)/installed
	python -m studies.seeds

# What takes hours: the project killed, stopped, filled up, damaged and misled, and the native library's fuzzer.
campaign: $(VENV)/installed
	python tests/campaign.py
	FUZZ_SECONDS=600 pytest -n0 tests/test_native.py -k guided_fuzzer

check: $(VENV)/installed
	ruff format --check .
	ruff check .
	mypy

$(VENV)/installed: requirements.lock pyproject.toml
	@command -v g++ >/dev/null || { echo "error: g++ is missing: AOTInductor compiles C++; install it (Debian: apt install g++)" >&2; exit 1; }
	@command -v git >/dev/null || { echo "error: git is missing; install it (Debian: apt install git)" >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing: Python 3.11 to 3.13 is needed; give another with PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { echo "error: $(PYTHON) is $$($(PYTHON) --version), Python 3.11 to 3.13 is needed; give another with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifdef TORCH_INDEX # of PyTorch's builds without CUDA, say; then its libraries are not needed either
	$(PIP) --index-url $(TORCH_INDEX) $(shell grep -E '^torch(vision)?==' requirements.lock)
	grep -vE '^(cuda-|nvidia-|triton==)' requirements.lock > $(VENV)/requirements.txt
	$(PIP) --requirement $(VENV)/requirements.txt
else
	$(PIP) --requirement requirements.lock
endif
	$(PIP) --no-deps --editable .
	@touch $@

# The exact versions of all that pyproject.toml allows, for all commands above.
lock: $(VENV)/installed
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --no-header --no-annotate \
		--quiet --upgrade --output-file requirements.lock
