PROFILE ?= pocket
PARTS ?=
SET ?=
CLUSTER ?=
CORES ?= 2
PYTHON ?= python3.11
BIN ?= .venv/bin

export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
# As it was typed: with its quotes, which a command line would take away, and with a $$ that make would read.
export REWIRED_SET := $(value SET)

# An environment of one's own (conda: BIN=$$CONDA_PREFIX/bin) is used as it is; .venv is made from the lock.
READY := $(if $(filter .venv/bin,$(BIN)),.venv/installed)

.PHONY: help book test test-all cluster-test lint format serve lock clean
.DEFAULT_GOAL := help

help:            ## show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/ :/' | awk -F ' : ' '{ printf "make %-8s %s\n", $$1, $$2 }'

book: $(READY)   ## build the book: PROFILE=pocket PARTS=study SET="training.kl=0.1" CORES=2 CLUSTER=slurm
	@$(BIN)/python tools/book.py --profile "$(PROFILE)" --parts "$(PARTS)" --cores "$(CORES)" --cluster "$(CLUSTER)"

# One process more than cores: some tests wait for a browser, for a build, or for what another one makes.
PYTEST = $(BIN)/python -m pytest --numprocesses $$(($(CORES) + 1)) --dist worksteal

test: $(READY)   ## run the tests: TESTS=tests/test_runs.py for some of them
	@$(PYTEST) $(TESTS)

test-all: $(READY) ## run them all: the book in half precision and on another device besides, in 20 minutes
	@$(PYTEST) -m "all or not all" $(TESTS)

cluster-test: $(READY) ## run the ci book on a SLURM cluster of this one machine, and compare it with a local run
	@tools/cluster_test.sh

lint: $(READY)   ## check style, types, the house's limits and its rules
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/python tools/house.py \
		&& $(BIN)/python tools/lint.py

format: $(READY) ## bring code and notebooks into the house's form
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .

serve: $(READY)  ## show the built site at http://localhost:8000
	@$(BIN)/python -m http.server 8000 --directory _build/html

lock:            ## pin anew what pyproject.toml asks for; what is pinned already stays if it can
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --disable-pip-version-check --quiet --constraint requirements.lock --editable '.[dev]'
	{ sed -n '/^#/p' requirements.lock; .venv-lock/bin/python -m pip freeze --all --exclude-editable \
		| grep -vE '^(nvidia|cuda|triton|pip=|wheel=)' | sed 's/+[a-z0-9]*$$//'; } > .lock.partial
	mv .lock.partial requirements.lock && rm -rf .venv-lock

clean:           ## remove all results and the built site
	rm -rf results _build .snakemake .pytest_cache .ruff_cache .mypy_cache

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@
