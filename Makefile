# Every target does its own set-up; `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
ENGINES := .venv-engines
LOWEST := .venv-lowest
NEMO := .venv-nemo
WORKERS := 2
# Torch in one thread each: processes with as many threads as there are cores starve one another.
PARALLEL := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test test-matrix test-engines leaks lint types format docs bench bench-nemo soak reference measure evaluations clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { echo "a virtual environment needs: apt-get install python3-venv"; exit 1; }

# torch first and alone: constraints.txt names the version, so that no other requirement pulls a CUDA build.
$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) -e '.[local,cli]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run integrations/langchain/pyproject.toml integrations/llama-index/pyproject.toml requirements-dev.txt
	$(PIP) -e '.[all,inspect]' -e 'integrations/langchain[agents]' -e integrations/llama-index -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.run ## watch an attack with and without the guard
	@$(BIN)/ada-guard demo

test: $(VENV)/.dev ## run all tests, in WORKERS=2 processes
	$(PARALLEL) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

# The oldest LangChain that its package supports, everything else as in constraints.txt.
$(LOWEST)/.ready: pyproject.toml constraints.txt requirements-dev.txt integrations/langchain/pyproject.toml integrations/langchain/tests/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	grep -vE '^(langchain|langgraph|langsmith)' constraints.txt > $(LOWEST)/constraints.txt
	cat integrations/langchain/tests/lowest.txt >> $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt torch
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt -e '.[local,serve]' -e 'integrations/langchain[agents]' -r requirements-dev.txt
	@touch $@

test-matrix: $(LOWEST)/.ready ## run LangChain's tests on the oldest versions that are supported
	$(PARALLEL) $(LOWEST)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile integrations/langchain

# An environment for the server alone: vLLM and we want different versions of transformers. The audio and image builds
# that come with it were not made for this torch, and vLLM fails to start when it finds them.
$(ENGINES)/.ready: tests/engines/requirements.txt
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/engines/requirements.txt
	$(ENGINES)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-engines: $(VENV)/.dev $(ENGINES)/.ready ## run the tests that need a real vLLM server (3.3 GB, once); RESULTS=FILE saves the figures
	ADA_GUARD_ENGINES=$(ENGINES)/bin/python ADA_GUARD_ENGINES_RESULTS=$(RESULTS) $(BIN)/python -m pytest -q -s tests/engines

leaks: $(VENV)/.dev ## print which surface of LangChain and LlamaIndex leaks with which guard
	cd integrations/langchain && ../../$(BIN)/python -m leak_matrix
	$(BIN)/python integrations/llama-index/leak_matrix

lint: $(VENV)/.dev ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy
	$(BIN)/mypy --config-file pyproject.toml integrations/langchain/langchain_ada_guard integrations/langchain/leak_matrix
	cd integrations/llama-index && ../../$(BIN)/mypy --config-file ../../pyproject.toml --namespace-packages --explicit-package-bases llama_index/llms/ada_guard
	cd integrations/llama-index/leak_matrix && ../../../$(BIN)/mypy --config-file ../../../pyproject.toml llama_index_leaks

format: $(VENV)/.dev ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## build the documentation into site/
	$(PIP) mkdocs-material
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev ## measure steps, whole streams, the pool and what needs no model (15 minutes); writes results and tables
	$(BIN)/python benchmarks/decode_step.py
	$(BIN)/python benchmarks/whole_stream.py
	$(BIN)/python benchmarks/pool.py
	$(BIN)/python benchmarks/machinery.py
	$(BIN)/python benchmarks/bf16_divergence.py
	$(BIN)/python benchmarks/langchain_overhead.py
	$(BIN)/python benchmarks/tables.py

soak: $(VENV)/.dev ## run many streams with random disconnects (11 minutes); writes benchmarks/results
	$(BIN)/python benchmarks/soak.py

# NVIDIA NeMo Guardrails wants versions of its own of much that we use too.
$(NEMO)/.ready: benchmarks/nemo/requirements.txt
	$(PYTHON) -m venv $(NEMO)
	$(NEMO)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/nemo/requirements.txt
	@touch $@

bench-nemo: $(VENV)/.dev $(NEMO)/.ready ## measure guarded streams beside NeMo Guardrails' (0.3 GB, once; 5 minutes)
	$(BIN)/python benchmarks/streaming_guards.py

reference: $(VENV)/.dev ## train the reference model and its probe again (about 20 minutes)
	$(BIN)/python -m ada_guard.reference.build

measure: $(VENV)/.dev ## the reference model's table: writes benchmarks/results/reference.json
	$(BIN)/python -m ada_guard.reference.measure

evaluations: $(VENV)/.dev ## every evaluation of the reference model (7 minutes); writes benchmarks/results/evaluations and the tables
	rm -rf build/evaluations
	$(BIN)/ada-guard eval all --model reference --out build/evaluations
	rm -rf benchmarks/results/evaluations
	cp -R build/evaluations/results benchmarks/results/evaluations
	$(BIN)/python benchmarks/tables.py

clean: ## remove everything that was built
	rm -rf $(VENV) $(ENGINES) $(LOWEST) $(NEMO) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
