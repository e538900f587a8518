# `make demo` and `make test` do all the set-up themselves; PYTHON=python3.12 chooses another one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
DOCUMENTS := examples/documents/annual-report.pdf examples/documents/supplier-contract.pdf \
	examples/documents/equipment-manual.pdf

.PHONY: demo ui test lint types unit fuzz bench peers samples clean

demo: $(VENV)/.user
	$(BIN)/pacellm-rag models install
	@$(BIN)/pacellm-rag ask $(DOCUMENTS) --max-new-tokens 40 \
		-q "How many smart meters did Vessary Water install in 2024?" \
		-q "Within how many days are the Supplier's invoices payable?" \
		-q "Who signed the contract for the Supplier?" \
		-q "To what torque are the coupling bolts tightened?" \
		-q "Which shipping company carried the pump sets to Norrock?"

ui: $(VENV)/.ui
	$(BIN)/pacellm-rag models install
	$(BIN)/pacellm-rag-ui $(DOCUMENTS)

test: lint types unit

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

unit: $(VENV)/.dev
	$(BIN)/pacellm-rag models install
	$(BIN)/python tests/integrations/tool_model.py
	$(BIN)/python -m pytest -n 2 --dist loadfile

# New examples for the tests that make theirs, where `test` takes the same ones every time.
fuzz: $(VENV)/.dev
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -n 2 -m hypothesis

bench: $(VENV)/.dev
	$(BIN)/pacellm-rag models install
	$(BIN)/python benchmarks/read.py
	$(BIN)/python benchmarks/answers.py

# What others offer, for benchmarks/ask_many.py and benchmarks/integrations.py.
peers: $(VENV)/.dev
	$(PIP) --no-deps --target build/peers langchain-huggingface==1.2.3 llama-index-llms-huggingface==0.8.0

samples: $(VENV)/.dev
	$(BIN)/python examples/make_documents.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/.ui: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[ui,html,docx]'
	touch $@ $(VENV)/.user

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.user
