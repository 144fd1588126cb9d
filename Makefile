# Everything a person does with this repository, by name. `make` alone lists it.
# The environments are made on demand from the locks in requirements/; a stamp file in each makes a second call instant.

PYTHON ?= python3
PORT ?= 8080
MIN_PYTHON := $(shell sed -n 's/^min_python *= *//p' settings.ini)
VERSION := $(shell sed -n 's/^version *= *//p' settings.ini)
BIN := .venv/bin
in_venv := PATH="$(CURDIR)/$(BIN):$$PATH"
# Quarto is not on PyPI. Where it is missing, tools/quarto stands in for it.
quarto := $(shell command -v quarto 2>/dev/null)
docs_path := PATH="$(CURDIR)/$(BIN):$(if $(quarto),,$(CURDIR)/tools:)$$PATH"
readme_path := PATH="$(CURDIR)/$(BIN):$(CURDIR)/tools:$$PATH"

# What a user gives reaches commands through the environment. In their text it could be a command itself. It is taken
# as it stands, since `make` would expand a $ in it.
given_names := TAG ARGS PORT NAME TITLE
given := $(foreach name,$(given_names),$(if $(filter command environment,$(origin $(name))),$(name)))
$(foreach name,$(given),$(eval override $(name) := $$(value $(name)))$(eval export $(name)))

need_python = $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < tuple(map(int, "$(MIN_PYTHON)".split("."))))' || { \
	echo "trashsorting needs Python $(MIN_PYTHON) or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	echo "Name another one: make $(or $(firstword $(MAKECMDGOALS)),run) PYTHON=python$(MIN_PYTHON)" >&2; exit 1; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run setup cloud runtime test check-long lint export outputs new-module docs lab lock wheel audit

help: ## What can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: export PORT := $(PORT)
run: fetch_failed := true
run: npm_options := --fetch-retries=0
run: .venv-serve/.stamp runtime ## Start the service in the light environment, PORT=8080
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

cloud: .venv-cloud/.stamp ## The environment for `trashsorting job` and DVC: light, without torch

.venv-cloud/.stamp: requirements/cloud.txt
	@$(need_python)
	@rm -rf .venv-cloud
	$(PYTHON) -m venv .venv-cloud
	.venv-cloud/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/cloud.txt
	@touch $@

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

# npm checks the hash that package-lock.json has, and runs no script of a package. Without npm the service works, and its
# page asks it about each photograph. A failed download ends all but `make run`.
fetch_failed := exit 1

runtime: trashsorting/static/runtime/ort.wasm.gz ## ONNX Runtime Web, with which the page classifies on a phone (needs npm)

trashsorting/static/runtime/ort.wasm.gz: package-lock.json tools/runtime.mjs
	@if ! command -v npm >/dev/null; then \
		echo "runtime: npm is missing, so the page asks the server only; with Node.js it classifies on a phone, too" >&2; \
	elif ! { npm ci --ignore-scripts --no-audit --no-fund --silent $(npm_options) && node tools/runtime.mjs; }; then \
		echo "runtime: npm could not fetch ONNX Runtime Web, so the page asks the server only; try make runtime" >&2; \
		$(fetch_failed); \
	fi

# A file's tests share what its fixtures made; tests/conftest.py says which file begins first.
pytest := pytest -n 2 --dist loadfile --no-loadscope-reorder
with_args := PYTEST_ADDOPTS="$$PYTEST_ADDOPTS $$ARGS"

# One process a core: threads of two on the same cores wait for each other. torch reads its log level when it is loaded,
# and a process of nbdev_test loads it before it comes to the notebook of `launch`, which sets it.
test: export OMP_NUM_THREADS = 1
test: setup runtime ## Exported and clean, lint, the notebooks, pytest (ARGS="-k name" goes to pytest)
	@$(BIN)/python tools/check_clean.py
	@$(MAKE) --no-print-directory lint
	$(in_venv) TORCH_CPP_LOG_LEVEL=FATAL nbdev_test --flags slow
	$(in_venv) $(with_args) $(pytest)

check-long: setup runtime ## What each notebook shows, then the tests with tens of thousands of hostile uploads
	$(in_venv) PYTHONWARNINGS=ignore python tools/check_outputs.py
	$(in_venv) CHECK_FUZZ=30000 CHECK_SCHEMATHESIS=300 CHECK_PHOTOGRAPHS=328 CHECK_PREDICTIONS=20000 CHECK_ALARMS=1 CHECK_SWAPS=100 CHECK_SCORE=100000 CHECK_RAY=1 CHECK_NODES=1 CHECK_TEACH=1 \
		CHECK_EXPERIMENTS=1 \
		$(with_args) pytest

lint: setup ## Rules, layout, types, dead code, dependencies, which package may import which, rules of places
	$(BIN)/ruff check . tools/quarto
	$(BIN)/ruff format --check $(wildcard bench experiments tests tools) setup.py tools/quarto
	$(BIN)/mypy
	$(BIN)/vulture
	@sed -n 's/^\(train_\|cloud_\|score_\|ray_\)\{0,1\}requirements = //p' settings.ini | tr ' ' '\n' | sed 's/;.*//' > .venv/.declared
	$(BIN)/deptry . --requirements-files .venv/.declared
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tools/rules.py check

export: setup ## All that is written from the notebooks: modules, sidebar, picture of the packages, README
	$(in_venv) nbdev_export
	$(in_venv) nbdev_clean
	$(BIN)/python tools/website.py sidebar
	$(BIN)/python tools/packages.py
	$(BIN)/python tools/monitoring.py
	$(BIN)/python tools/rules.py schema
	@rm -rf _proc  # what the website left there has other names
	$(readme_path) nbdev_readme

outputs: setup ## Run every notebook in a Jupyter kernel, keep what it shows, then export (not the training run)
	find nbs -name '*.ipynb' ! -path nbs/train.ipynb ! -path '*/.*' -print0 | $(in_venv) PYTHONWARNINGS=ignore xargs -0 \
		jupyter nbconvert --log-level WARN --to notebook --execute --inplace
	@$(MAKE) --no-print-directory export

new-module: ## The first cells of a notebook: NAME=data.foo TITLE="What it is"
	@$(PYTHON) tools/new_module.py "$$NAME" "$$TITLE"

docs: export runtime $(if $(quarto),,.venv-docs/.stamp) ## The website, into _docs; links, pages and public names are checked
	@rm -rf _proc
	$(docs_path) PYTHONWARNINGS=ignore nbdev_docs
	$(BIN)/python tools/website.py app
	$(BIN)/python tools/website.py llms
	$(BIN)/python tools/website.py check

.venv-docs/.stamp: requirements/docs.txt
	@rm -rf .venv-docs
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt
	@touch $@

lab: setup ## JupyterLab on the notebooks; git then keeps them clean (nbdev) and checks each commit (pre-commit)
	$(in_venv) nbdev_install_hooks
	$(in_venv) pre-commit install
	$(in_venv) jupyter lab nbs $$ARGS

lock: ## The locks, from settings.ini (UPGRADE=1 looks for newer versions)
	@command -v uv >/dev/null 2>&1 || test -x .venv-lock/bin/uv || { \
		$(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install --quiet uv; }
	PATH="$$PATH:$(CURDIR)/.venv-lock/bin" requirements/lock.sh $(if $(UPGRADE),--upgrade)

wheel: ## The wheel, into dist (TAG=v1.2.3 must then be what settings.ini says)
	@test -z "$$TAG" || test "$$TAG" = "v$(VERSION)" || { \
		echo "the tag is $$TAG, and settings.ini says $(VERSION)" >&2; exit 1; }
	@$(MAKE) --no-print-directory runtime
	@$(PYTHON) -m venv --clear .venv-build
	.venv-build/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.txt
	.venv-build/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

audit: ## What is known against the versions in the locks; asks an advisory service
	@$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	for lock in serve cloud train dev docs; do \
		.venv-audit/bin/pip-audit --disable-pip --require-hashes -r requirements/$$lock.txt || exit 1; done
