# `make quickstart` sets everything up and runs the main job; `make test` runs the tests, with a share of the exhaustive ones that
# changes with the date (SHARE=N chooses it; the log says which), `make test-all` all of them, `make test-fast` those of some minutes.
# `make docs` builds the site, `make package` the wheel and the sdist, which it tries in an empty environment. PYTHON chooses the
# interpreter, TORCH_INDEX the index of torch alone: https://download.pytorch.org/whl/cpu has builds without CUDA.
PYTHON ?= python3
TORCH_INDEX ?=
VENV ?= .venv
BIN = $(VENV)/bin
# a test computes on one thread; the tests of a file stay together
WORKERS = -n logical --maxprocesses 4 --dist loadfile
INSTALL = $(BIN)/pip install --quiet -c constraints.txt

INSTALL_TORCH = $(INSTALL) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $$(grep '^torch==' constraints.txt)

.PHONY: install quickstart test test-fast test-gpu test-all lint docs package diffusers-dev clean

install: $(VENV)/installed

# torch first and by its exact version, so that no other package chooses a build for it
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); the first time takes some minutes"
	$(INSTALL_TORCH)
	$(INSTALL) -e .
	touch $@

quickstart: install
	$(BIN)/ff-train examples/quickstart.yaml

$(VENV)/installed-test: $(VENV)/installed
	$(INSTALL) -e '.[test]'
	touch $@

test-fast: $(VENV)/installed-test
	$(BIN)/python -m pytest $(WORKERS)

test: test-fast
	$(BIN)/python -m pytest $(WORKERS) -m 'slow or exhaustive'

test-gpu: $(VENV)/installed-test
	$(BIN)/python -m pytest -m gpu tests/gpu

test-all: $(VENV)/installed-test
	$(BIN)/python -m pytest $(WORKERS) -m '' --share all

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed
	$(INSTALL) -e '.[docs]'
	$(BIN)/python tools/make_site.py

package:
	PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' tools/try_package.sh

# the proofs against another diffusers than the pinned one, those whose names match ONLY: diffusers/README.md
diffusers-dev: $(VENV)/installed-test
	$(BIN)/python tools/diffusers_dev.py '$(SOURCE)' --only '$(ONLY)'

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache
