# Two commands on a fresh machine (Python >= 3.11, git, make):
#   make demo    corrects data/demo.h5ad and prints scores before and after
#   make test    runs all tests; CELLNORM_DATA=<folder of real sets> adds the tests on real data
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := build
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Only these change what has to be installed: the package itself is installed editable.
INSTALLED_FROM := pyproject.toml constraints.txt $(BIN)/python

.PHONY: demo test lint format notebooks wheel clean

demo: $(VENV)/.runtime
	@mkdir -p $(OUT)
	$(BIN)/cellnorm correct data/demo.h5ad -o $(OUT)/demo.cellnorm.h5ad --force
	$(BIN)/python benchmarks/demo_scores.py $(OUT)/demo.cellnorm.h5ad

test: $(VENV)/.test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict cellnorm

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Runs copies: what is kept in the repository stays without outputs.
notebooks: $(VENV)/.test
	rm -rf $(OUT)/notebooks && mkdir -p $(OUT)/notebooks
	set -e; for notebook in notebooks/*.ipynb; do echo "running $$notebook"; \
		$(BIN)/jupyter-execute --timeout=600 --kernel_name=python3 \
			--output="$(CURDIR)/$(OUT)/notebooks/$$(basename "$$notebook" .ipynb)" "$$notebook"; done

wheel: $(VENV)/.test
	rm -rf dist
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(OUT) dist $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "cellnorm needs Python 3.11 or newer; choose one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(INSTALLED_FROM)
	$(INSTALL) -e .
	@touch $@

# The test install holds the runtime one, so that `make demo` after `make test` has nothing to do.
$(VENV)/.test: $(INSTALLED_FROM)
	$(INSTALL) -e '.[test,notebooks]'
	@touch $(VENV)/.runtime $@
