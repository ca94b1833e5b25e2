# The commands of the project. `make` lists them.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
NB ?=
PART ?=
PORT ?= 8000

BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install -c constraints.txt
RUN_ENV := $(VENV)/.run
DEV_ENV := $(VENV)/.dev
MADE_FROM := settings.ini setup.py constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup run test slow mutants colab check sync notebooks site serve dist clean

help: ## list these targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | \
	while IFS="$$(printf '\t')" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

# An editable install finds nothing unless the package is there already, hence the last prerequisite.
$(RUN_ENV): $(MADE_FROM) | amtutorial/__init__.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	touch $@

$(DEV_ENV): $(RUN_ENV)
	$(PIP) -e '.[dev]'
	touch $@

setup: $(DEV_ENV) ## create the environment in .venv, with everything for tests and site

run: $(RUN_ENV) ## run the experiment; options in ARGS, e.g. make run ARGS="--quick"
	$(BIN)/amtutorial $(ARGS)

test: export OMP_NUM_THREADS = 1
test: $(DEV_ENV) ## run every notebook and all tests
	$(BIN)/ruff check
	$(BIN)/python tools/notebooks.py check
	$(BIN)/nbdev_test --n_workers 2 --timing
	$(BIN)/python -m pytest -q -n 2 --dist worksteal tests --ignore tests/test_colab.py --ignore tests/slow

slow: export OMP_NUM_THREADS = 1
slow: $(DEV_ENV) ## run the slow tests; a part of them with PART=test_load.py
	$(BIN)/python -m pytest -q tests/slow/$(PART)

mutants: export OMP_NUM_THREADS = 1
mutants: $(DEV_ENV) ## put single faults into the package and see which of them the tests notice
	$(BIN)/python tools/mutants.py --out $(VENV)/mutants.json
	$(BIN)/python tests/slow/conftest.py $(VENV)/mutants.json

colab: $(DEV_ENV) ## run every Colab copy from an empty folder, with Colab simulated
	$(BIN)/python -m pytest -q tests/test_colab.py

check: $(DEV_ENV) ## see in seconds whether style is kept and everything in step with the notebooks
	$(BIN)/ruff check
	$(BIN)/python tools/notebooks.py check
	$(BIN)/python -m pytest -q tests/test_frame.py

sync: $(DEV_ENV) ## bring modules, badges, Colab copies and README in step with the notebooks
	$(BIN)/python tools/notebooks.py sync

notebooks: sync ## run the notebooks and keep their outputs; one of them with NB=nbs/02_sde.ipynb
	$(BIN)/python tools/notebooks.py execute $(NB)
	$(BIN)/python tools/notebooks.py sync

site: $(DEV_ENV) ## build the site in _docs/, with Quarto if it is installed
	$(BIN)/python tools/site.py

serve: site ## build the site and serve it on this machine
	$(BIN)/python -m http.server --directory _docs --bind 127.0.0.1 $(PORT)

dist: sync ## build wheel and sdist in dist/
	$(BIN)/python -m build --no-isolation

clean: ## remove the environment and everything generated
	rm -rf $(VENV) _proc _docs build dist *.egg-info
