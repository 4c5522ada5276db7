# `make` lists the targets. Everything runs in .venv, made on first use with Python 3.11 or later.

PYTHON ?= python3
VENV := .venv
# Tests run in so many processes at once, of one thread each.
WORKERS ?= 2
BIN := $(VENV)/bin
ifndef DEMO_RUN
DEMO_RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check format clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Make the environment and install resnetlab into it

demo: $(VENV)/.installed ## Train on the embedded digits, evaluate, and write the report
	$(BIN)/resnetlab train digits --model resnet20 --epochs 60 --batch-size 64 --out $(DEMO_RUN)
	$(BIN)/resnetlab evaluate $(DEMO_RUN)
	@echo "Open $(DEMO_RUN)/report.html in a browser."

test: $(VENV)/.installed-dev ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.installed-dev ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-dev ## Run ruff, pyright and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist src/*.egg-info

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("ResNetLab needs Python 3.11 or later, and \
	$(PYTHON) is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
