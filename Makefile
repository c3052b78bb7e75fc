# `make quickstart` sets everything up and runs the main job; `make test` runs the tests, with a share of the exhaustive ones that
# changes with the date (SHARE=N chooses it; the log says which), `make test-all` all of them. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# a test computes on one thread; the tests of a file stay together
WORKERS = -n logical --maxprocesses 4 --dist loadfile
INSTALL = $(BIN)/pip install --quiet -c constraints.txt

.PHONY: install quickstart test test-all lint clean

install: $(VENV)/installed

# torch first and by its exact version, so that no other package chooses a build for it
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time takes some minutes"
	$(INSTALL) $$(grep '^torch==' constraints.txt)
	$(INSTALL) -e .
	touch $@

quickstart: install
	$(BIN)/ff-train examples/quickstart.yaml

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) -e '.[test]'
	touch $@

test: $(VENV)/installed-test
	$(BIN)/python -m pytest $(WORKERS)
	$(BIN)/python -m pytest $(WORKERS) -m 'slow or exhaustive'

test-all: $(VENV)/installed-test
	$(BIN)/python -m pytest $(WORKERS) -m '' --share all

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
