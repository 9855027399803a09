# Each target makes .venv and installs what it needs; a second run reuses it.
PYTHON ?= python3
TASK ?= parity_check
SEED ?= 0
OUTPUT ?= runs/$(TASK)-seed$(SEED)
ARGS ?=
# Of the tests; most of them use one core.
PARALLEL ?= --numprocesses 2 --dist worksteal

BIN := .venv/bin
INSTALLED := .venv/installed
OLDEST := .venv-oldest/installed
TRANSFORMERS_SOURCE := .venv/transformers-source

.PHONY: train bench test test-oldest test-common lint clean

train: $(INSTALLED)
	$(BIN)/python examples/run_formal.py --task $(TASK) --seed $(SEED) --output_dir $(OUTPUT) \
		--hidden_size 64 --max_steps 3000 --test_examples_per_length 32 $(ARGS)

# Speed and memory on this machine's GPU, or its CPU, beside the peers'.
bench: $(INSTALLED)
	$(BIN)/python examples/benchmark_speed.py $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# The tests on the oldest versions that setup.cfg admits, whose own leaks are not ours to mend; torch and triton are the
# pinned ones there too, so that what they alone decide is left out.
test-oldest: $(OLDEST)
	.venv-oldest/bin/python -m pytest -W ignore::pytest.PytestUnraisableExceptionWarning \
		-m "not pinned" $(PARALLEL) $(ARGS)

# transformers' own tests of what every model must survive, from its source distribution; -rs lists what is skipped.
test-common: $(TRANSFORMERS_SOURCE)
	TRANSFORMERS_SOURCE=$< $(BIN)/python -m pytest -o addopts= -W default -rs \
		tests/modeling_prlstm/test_transformers_common.py $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-oldest runs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): constraints.txt
$(OLDEST): constraints-oldest.txt
$(INSTALLED) $(OLDEST): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint $(filter constraints%,$^) --editable ".[dev]"
	touch $@

$(TRANSFORMERS_SOURCE): $(INSTALLED)
	rm -rf $@ && mkdir $@
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest $@ \
		transformers==$$($(BIN)/python -c "from importlib.metadata import version; print(version('transformers'))")
	tar --extract --gzip --strip-components 1 --directory $@ --file $@/*.tar.gz
	touch $@/tests/__init__.py # left out of the distribution
