# make book [PROFILE=pocket] [SET="training.kl=0.1"]   make test   make lint   make clean
PROFILE ?= pocket
SET ?=
CORES ?= 2
PYTHON ?= python3.11
BIN ?= .venv/bin

export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

# An environment of one's own (conda: BIN=$$CONDA_PREFIX/bin) is used as it is; .venv is made from the lock.
READY := $(if $(filter .venv/bin,$(BIN)),.venv/installed)

.PHONY: book test lint clean

book: $(READY)
	@$(BIN)/python tools/book.py --profile "$(PROFILE)" --set "$(SET)" --cores "$(CORES)"

test: $(READY)
	@$(BIN)/python -m pytest --numprocesses $(CORES) --dist worksteal $(TESTS)

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python tools/lint.py

clean:
	rm -rf results _build .snakemake .pytest_cache .ruff_cache

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@
