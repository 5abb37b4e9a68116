# Every target does the set-up it needs; it takes minutes the first time, and nothing when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Of the demonstration: a hub id, a folder, a file, or random:tiny
MODEL ?= random:tiny
DEMO := build/demo
# Of the comparison: another Python that has the reference installed, and arguments of parity.check
PARITY_PYTHON ?=
PARITY_ARGS ?=
PARITY_VENV := .parity/venv
PARITY_STAMP := $(PARITY_VENV)/.installed
REFERENCE_PYTHON := $(or $(PARITY_PYTHON),$(PARITY_VENV)/bin/python)
REFERENCE := $(if $(PARITY_PYTHON),,$(PARITY_STAMP))
RAY_STAMP := $(PARITY_VENV)/.ray
REFERENCE_RAY := $(if $(PARITY_PYTHON),,$(RAY_STAMP))
# Arguments of benchmarks.engine
BENCH_ARGS ?=
# Arguments of tests.chaos, such as --seed 7 --store rclone
CHAOS_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-cluster test-browser chaos parity bench bench-ray lint format clean

help: ## list the targets
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything that is needed

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; say which one to use: make PYTHON=python3.11" >&2; exit 1; }
	@# Without pip it is a half-made one.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV), which takes some minutes the first time ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: setup ## run the main job on the clips of demo/voices (MODEL=random:tiny: noise, no download)
	@rm -rf $(DEMO)
	$(BIN)/s3gen voices demo/voices --out $(DEMO)/voices.parquet --model $(MODEL)
	$(BIN)/python demo/make_manifest.py demo/voices --sentences demo/voices.tsv --out $(DEMO)/manifest.parquet --model $(MODEL)
	$(BIN)/s3gen synth configs/demo.yaml --set model=$(MODEL)
	$(BIN)/s3gen verify $(DEMO)/speech
	$(if $(filter random:%,$(MODEL)),@echo "To hear the clips' sentences in each other's voices: make demo MODEL=ResembleAI/chatterbox")

test: setup ## run all tests but those of the next two
	$(BIN)/python -m pytest --ignore=tests/browser -m "not cluster" --numprocesses=auto --maxprocesses=4 --dist=loadfile

test-cluster: setup ## run whole jobs on Ray, some of which are killed
	$(BIN)/python -m pytest --ignore=tests/browser -m cluster

test-browser: setup ## look at the report page with Chromium; screenshots in build/browser
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ echo "There is no Chromium; on Debian and Ubuntu: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pytest tests/browser

chaos: setup ## kill a job's processes fifty times, and say what was lost (minutes)
	$(BIN)/python -m tests.chaos --report build/chaos $(CHAOS_ARGS)

parity: setup $(REFERENCE) ## hold the full-size model against the reference implementation (minutes, 3 GB of disk)
	$(BIN)/python -m parity.check --reference-python $(REFERENCE_PYTHON) $(PARITY_ARGS)

$(PARITY_STAMP): parity/install.sh parity/constraints.txt
	@echo "Installing the reference into $(PARITY_VENV), which takes some minutes the first time ..."
	@sh parity/install.sh $(PARITY_VENV) $(PYTHON)
	@touch $@

bench: setup $(REFERENCE) ## measure speed and memory beside the reference, and a job of 100,000 shards (minutes)
	$(BIN)/python -m benchmarks.engine --reference-python $(REFERENCE_PYTHON) $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.scale --shards 100000

bench-ray: setup $(REFERENCE_RAY) ## the same, and beside the reference inside Ray Data
	$(BIN)/python -m benchmarks.engine --reference-python $(REFERENCE_PYTHON) --ray-data $(BENCH_ARGS)

$(RAY_STAMP): benchmarks/constraints.txt $(PARITY_STAMP)
	@echo "Installing ray[data] into $(PARITY_VENV) ..."
	@$(PARITY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c parity/constraints.txt -c benchmarks/constraints.txt "ray[data]"
	@touch $@

lint: setup ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## bring the code into the format that lint wants
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what demo and the tools have written, but not .venv
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
