# `make` lists the targets. Everything runs in .venv, which is created on first use with Python 3.11 or later.

PYTHON ?= python3
VENV := .venv
# Number of processes that run tests, with one thread each.
WORKERS ?= 2
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
QUICK_TESTS = $(PYTEST) -m "not slow"
# Share of the failing file-system calls, signals and pairs of processes that the slow tests try; 1 also runs the cases
# that `sampled` leaves out.
SWEEP ?= 0.03
SLOW_TESTS = SWEEP=$(SWEEP) $(PYTEST) -m slow
ifndef DEMO_RUN
DEMO_RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
endif

.DEFAULT_GOAL := help
CHECKS := check-style check-types check-types-on-windows check-layers
.PHONY: help install demo check $(CHECKS) test test-slow test-all docs format dist clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## Create the environment and install resnetlab into it

demo: $(VENV)/.installed ## Train on the embedded digits, and write the report
	$(BIN)/resnetlab train digits --model resnet20 --epochs 60 --batch-size 64 --out $(DEMO_RUN)
	@echo "Open $(DEMO_RUN)/report.html in a browser."

check: $(CHECKS) ## Check style, types, layers and import cycles (-j 2: two checks at a time)

$(CHECKS): $(VENV)/.installed-dev

check-style:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-types:
	$(BIN)/pyright

check-types-on-windows:
	$(BIN)/pyright --pythonplatform Windows

check-layers:
	$(BIN)/lint-imports
	$(BIN)/python tools/find_cycles.py

test: $(VENV)/.installed-dev ## Run the tests that take seconds
	$(QUICK_TESTS)

test-slow: $(VENV)/.installed-dev ## Run the tests that take longer
	$(SLOW_TESTS)

test-all: SWEEP = 1
test-all: $(VENV)/.installed-dev ## Run all tests; after a stop or failure continue (FRESH=1: start over)
	$(if $(FRESH),rm -rf .test-all)
	$(QUICK_TESTS) -p tools.resume_tests
	$(SLOW_TESTS) -p tools.resume_tests
	rm -rf .test-all

docs: $(VENV)/.installed-dev ## Build the site; run changed lessons (EXECUTE="d2l gluon" or all: run these)
	EXECUTE="$(EXECUTE)" $(BIN)/python -m sphinx -W --keep-going -q $(if $(EXECUTE),-E) -d build/doctrees docs build/site
	@echo "Open build/site/index.html in a browser."

format: $(VENV)/.installed-dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dist: $(VENV)/.installed-dev ## Build wheel and sdist, and check them in a new environment
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python tools/check_dist.py dist

clean: ## Remove the environment and caches; keep runs and data
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache .test-all build dist src/*.egg-info

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("ResNetLab needs Python 3.11 or later, and \
	$(PYTHON) is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@
