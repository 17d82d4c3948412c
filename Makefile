# Needs Python 3.11 or newer, pip and make; everything else is installed into .venv by the first command.

VENV_PYTHON := .venv/bin/python
# Of what the program needs, and of what its tests and checks need besides.
STAMP := .venv/maskpick-installed
TEST_STAMP := .venv/maskpick-test-installed
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.PHONY: help chat test test-docs lint .venv
.NOTPARALLEL:
.DEFAULT_GOAL := help

help:
	@echo "make chat        install what is missing and open the chat in the browser (pocket preset, no GPU, no hub)"
	@echo "make test        install what is missing and run the tests, but the slow ones"
	@echo "make test-docs   run every command of README.md and docs/, cut short; about half an hour on two cores"
	@echo "make lint        check format, style and types"
	@echo "make .venv       only install, into .venv"

chat: $(STAMP)
	@$(VENV_PYTHON) app.py --preset pocket --open

# Two processes of one thread each: more threads would wait for each other.
test: $(TEST_STAMP)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q -m "not slow" --durations=20 -n 2 --dist loadfile

test-docs: $(TEST_STAMP)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q -n 2 --dist loadgroup tests/docs

lint: $(TEST_STAMP)
	$(VENV_PYTHON) -m ruff format --check
	$(VENV_PYTHON) -m ruff check
	$(VENV_PYTHON) -m mypy

.venv: $(TEST_STAMP)

# Makes .venv where it is missing or does not work.
define make_venv
	@set -e; \
	if ! $(VENV_PYTHON) -c '$(USABLE)' 2>/dev/null || ! $(VENV_PYTHON) -m pip --version >/dev/null 2>&1; then \
		found=; for python in python3.11 python3.12 python3; do \
			if $$python -c '$(USABLE)' 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "error: Python 3.11 or newer with its venv module is needed; install python3 and python3-venv" >&2; exit 2; \
		fi; \
		echo "$$found -m venv .venv"; \
		$$found -m venv --clear .venv; \
	fi
endef

# The stamps are written last: an installation cut short is taken up again by the next make, not taken for done.
$(STAMP): pyproject.toml
	@echo "Installing the program into .venv, once. On Linux it takes 6 GB, nearly all of it PyTorch with its GPU"
	@echo "libraries; the chat then fetches its models, 200 MB, at its first start."
	$(make_venv)
	$(VENV_PYTHON) -m pip install -e .
	@touch $@

$(TEST_STAMP): pyproject.toml
	$(make_venv)
	$(VENV_PYTHON) -m pip install -e '.[test,lint]'
	@touch $(STAMP) $@
