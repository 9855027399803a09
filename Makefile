# Each target makes .venv and installs what it needs; a second run reuses it.
PYTHON ?= python3
TASK ?= parity_check
SEED ?= 0
OUTPUT ?= runs/$(TASK)-seed$(SEED)
ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: train test lint clean

train: $(INSTALLED)
	$(BIN)/python examples/run_formal.py --task $(TASK) --seed $(SEED) --output_dir $(OUTPUT) \
		--hidden_size 64 --max_steps 3000 --test_examples_per_length 32 $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
