# Everything a person does with this repository, by name. `make` alone lists it.
# The environments are made on demand from the locks in requirements/; a stamp file in each makes a second call instant.

PYTHON ?= python3
PORT ?= 8080
MIN_PYTHON := $(shell sed -n 's/^min_python *= *//p' settings.ini)
VERSION := $(shell sed -n 's/^version *= *//p' settings.ini)
BIN := .venv/bin
in_venv := PATH="$(CURDIR)/$(BIN):$$PATH"
# Quarto cannot be had from PyPI: where it is missing, tools/quarto stands in for it.
quarto := $(shell command -v quarto 2>/dev/null)
docs_path := PATH="$(CURDIR)/$(BIN):$(if $(quarto),,$(CURDIR)/tools:)$$PATH"
readme_path := PATH="$(CURDIR)/$(BIN):$(CURDIR)/tools:$$PATH"

# What a caller gives reaches commands by their environment and never by their text, where it could be a command itself.
# It is taken as it stands: `make` would expand a $ in it.
given := TAG TORCH ARGS TRASHNET OTHERS CV PORT URL SECONDS USERS DATA OUT SPLIT EPOCHS
given := $(foreach name,$(given),$(if $(filter command environment,$(origin $(name))),$(name)))
$(foreach name,$(given),$(eval override $(name) := $$(value $(name)))$(eval export $(name)))

need_python = $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < tuple(map(int, "$(MIN_PYTHON)".split("."))))' || { \
	echo "trashsorting needs Python $(MIN_PYTHON) or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	echo "Name another one: make $(or $(firstword $(MAKECMDGOALS)),run) PYTHON=python$(MIN_PYTHON)" >&2; exit 1; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run cloud smoke wheel audit setup test test-torch check-long lint export outputs readme docs lab lock load load-arguments train train-arguments measured types dead coverage check-outputs hooks pre-commit

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run load-arguments: export PORT := $(PORT)
run: .venv-serve/.stamp ## Start the service in the light environment, PORT=8080
	@exec .venv-serve/bin/python -m trashsorting serve --port "$$PORT"

# The pip that Python already has is quicker than a new one in the environment. Nothing is compiled ahead: what is
# imported is compiled then.
.venv-serve/.stamp: requirements/serve.txt
	@$(need_python)
	@echo "trashsorting: first start, installing what serving needs into .venv-serve"
	@rm -rf .venv-serve
	@if $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m venv --without-pip .venv-serve && pip="$(PYTHON) -m pip --python .venv-serve/bin/python"; \
	else \
		$(PYTHON) -m venv .venv-serve && pip=".venv-serve/bin/python -m pip"; \
	fi && $$pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements/serve.txt
	@touch $@

cloud: .venv-cloud/.stamp ## The environment from which `trashsorting job` and DVC reach the cloud: light, without torch

.venv-cloud/.stamp: requirements/cloud.txt
	@$(need_python)
	@rm -rf .venv-cloud
	$(PYTHON) -m venv .venv-cloud
	.venv-cloud/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/cloud.txt
	@touch $@

smoke: ## What a first user does, in an environment of its own: predict and serve, on any system
	$(PYTHON) tools/smoke.py

test-torch: ## Training on TORCH=oldest or newest that settings.ini allows, in an environment of its own
	$(PYTHON) tools/test_torch.py "$${TORCH:-oldest}"

wheel: ## The wheel, into dist (TAG=v1.2.3 must then be what settings.ini says)
	@test -z "$$TAG" || test "$$TAG" = "v$(VERSION)" || { \
		echo "the tag is $$TAG, and settings.ini says $(VERSION)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv-build
	.venv-build/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.txt
	.venv-build/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

audit: ## What is known against the versions in the locks; asks an advisory service
	@$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	for lock in serve cloud train dev docs; do \
		.venv-audit/bin/pip-audit --disable-pip --require-hashes -r requirements/$$lock.txt || exit 1; done

setup: .venv/.package ## The development environment (7 GB, torch is in it)

# Seven gigabytes take pip minutes; uv asks the same index, unless UV_DEFAULT_INDEX names another one. What it installs is
# compiled ahead: many processes begin here, and with PYTHONDONTWRITEBYTECODE each would compile torch anew.
.venv/.requirements: requirements/dev.txt requirements/uv.txt
	@$(need_python)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@

.venv/.package: .venv/.requirements settings.ini setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# A file's tests share what its fixtures made; tests/conftest.py says which file begins first.
pytest := pytest -n 2 --dist loadfile --no-loadscope-reorder
with_args := PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$ARGS"

# One process a core: threads of two on the same cores wait for each other.
test coverage: export OMP_NUM_THREADS = 1
test: setup ## Exported and clean, lint, the notebooks, pytest (ARGS="-k name" goes to pytest)
	@$(BIN)/python tools/check_clean.py
	@$(MAKE) --no-print-directory lint
	$(in_venv) nbdev_test --flags slow
	$(in_venv) $(with_args) $(pytest)

check-long: setup check-outputs ## The same tests with tens of thousands of hostile uploads; what every notebook shows
	$(in_venv) CHECK_FUZZ=30000 CHECK_SCHEMATHESIS=300 CHECK_PHOTOGRAPHS=328 CHECK_PREDICTIONS=20000 $(with_args) pytest

lint: setup ## ruff: rules everywhere, layout where nbdev does not write; types; dead code
	$(BIN)/ruff check . tools/quarto
	$(BIN)/ruff format --check $(wildcard bench tests tools) setup.py tools/quarto
	$(BIN)/mypy
	$(BIN)/vulture

measured: setup ## What the model says of photographs, for its card: TRASHNET=folder OTHERS="folder folder" CV=folder
	@test -n "$$TRASHNET" && test -n "$$OTHERS" && test -n "$$CV" || { \
		echo "make measured needs TRASHNET (with images/ and split.csv), OTHERS (folders with one sub-folder a class)" >&2; \
		echo "and CV, the folder that trashsorting crossval filled" >&2; exit 2; }
	export $(in_venv) && set -e && mkdir -p nbs/measured && \
	trashsorting evaluate "$$TRASHNET/images" --split "$$TRASHNET/split.csv" --predictions nbs/measured/val.csv && \
	for folder in $$OTHERS; do \
		trashsorting evaluate "$$folder" --predictions "nbs/measured/$$(basename "$$folder").csv"; done && \
	trashsorting data check "$$TRASHNET/images" --split "$$TRASHNET/split.csv" --out .venv/.check && \
	cp .venv/.check/groups.csv nbs/measured/trashnet_groups.csv && cp "$$CV/predictions.csv" nbs/measured/out_of_fold.csv && \
	trashsorting robustness "$$TRASHNET/images" --split "$$TRASHNET/split.csv" --json nbs/measured/stress.json

types: setup ## mypy on the modules
	$(BIN)/mypy

dead: setup ## Code that nothing reaches, dependencies that nothing imports
	$(BIN)/vulture
	@sed -n 's/^\(train_\|cloud_\)\{0,1\}requirements = //p' settings.ini | tr ' ' '\n' | sed 's/;.*//' > .venv/.declared
	$(BIN)/deptry . --requirements-files .venv/.declared

coverage: setup ## Lines of the package that notebooks or tests run, from tools/run_notebook.py and pytest together
	@rm -f .coverage .coverage.*
	export $(in_venv) && printf '%s\n' $(filter-out nbs/train.ipynb,$(wildcard nbs/*.ipynb)) | \
		xargs -P 2 -n 1 coverage run tools/run_notebook.py > /dev/null
	$(in_venv) $(with_args) coverage run -m $(pytest)
	$(in_venv) coverage combine --quiet
	$(in_venv) coverage report

check-outputs: setup ## Every notebook in a Jupyter kernel: does it show what is committed?
	$(in_venv) PYTHONWARNINGS=ignore python tools/check_outputs.py

export: setup ## Notebooks to modules, then clean the notebooks
	$(in_venv) nbdev_export
	$(in_venv) nbdev_clean

outputs: setup ## Run every notebook in a Jupyter kernel and keep what it shows (not the training run)
	$(in_venv) PYTHONWARNINGS=ignore jupyter nbconvert --log-level WARN --to notebook --execute --inplace \
		$(filter-out nbs/train.ipynb,$(wildcard nbs/*.ipynb))
	$(in_venv) nbdev_clean

readme: setup ## README.md from nbs/index.ipynb, by the pinned pandoc, so that it is the same everywhere
	$(readme_path) nbdev_readme

docs: readme $(if $(quarto),,.venv-docs/.stamp) ## The website, into _docs; links, pages and public names are checked
	@rm -rf _proc
	$(docs_path) PYTHONWARNINGS=ignore nbdev_docs
	$(BIN)/python tools/website.py llms
	$(BIN)/python tools/website.py check

.venv-docs/.stamp: requirements/docs.txt
	@rm -rf .venv-docs
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt
	@touch $@

hooks: setup ## git merges and saves notebooks cleanly (nbdev), and every commit is checked (pre-commit)
	$(in_venv) nbdev_install_hooks
	$(in_venv) pre-commit install

pre-commit: setup ## What every commit is checked for, over the whole tree, offline
	$(in_venv) pre-commit run --all-files

lab: hooks ## JupyterLab on the notebooks, with nbdev's git and Jupyter hooks
	$(in_venv) jupyter lab nbs $$ARGS

lock: ## The locks, from settings.ini (UPGRADE=1 looks for newer versions)
	@command -v uv >/dev/null 2>&1 || test -x .venv-lock/bin/uv || { \
		$(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install --quiet uv; }
	PATH="$$PATH:$(CURDIR)/.venv-lock/bin" requirements/lock.sh $(if $(UPGRADE),--upgrade)

load: export RUN_SECONDS := $(or $(SECONDS),30)
load: load-arguments setup ## Put the service at URL=http://... under load, SECONDS=30 USERS=8; a table at the end
	@$(BIN)/locust --locustfile bench/locustfile.py --host "$$URL" --headless --users "$${USERS:-8}" --spawn-rate 100 --run-time "$${RUN_SECONDS}s" --stop-timeout 60 --only-summary --loglevel WARNING

load-arguments:
	@test -n "$$URL" || { \
		echo "make load needs URL, the address of a service that you may put under load:" >&2; \
		echo "  make load URL=http://127.0.0.1:$$PORT [SECONDS=30] [USERS=8]" >&2; exit 2; }

train: train-arguments setup ## A model: DATA=folder OUT=folder [SPLIT=split.csv] [EPOCHS=8]
	$(in_venv) trashsorting train --data "$$DATA" $${SPLIT:+--split "$$SPLIT"} --out "$$OUT" $${EPOCHS:+-p epochs "$$EPOCHS"}

train-arguments:
	@test -n "$$DATA" && test -n "$$OUT" || { \
		echo "make train needs DATA (a folder with one sub-folder a class) and OUT (a folder for the model):" >&2; \
		echo "  make train DATA=photos OUT=artifacts/model [SPLIT=split.csv] [EPOCHS=8]" >&2; exit 2; }
