# The environment is .venv; VENV=<folder> and PYTHON=<interpreter> choose others.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.regbench-setup

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench reproduce site

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: $(STAMP)  ## make the environment (a torch that is installed already is kept)

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/setup.sh
	@touch $@

demo: setup  ## train decoupled mixup and its mixup baseline on photographs, and show the result
	@$(BIN)/python scripts/demo.py

test: lint  ## lint, and run every test
	@$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup  ## check style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup  ## mend style and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

reproduce: setup  ## run a table and report it: make reproduce TABLE=decoupled_mixup/cifar100 SCALE=smoke
	@$(BIN)/python scripts/reproduce.py table=$(TABLE) scale=$(or $(SCALE),small)

site: setup  ## build the static site over all papers and tables in site/
	@$(BIN)/regbench site

bench: setup  ## measure speed and memory against a bare PyTorch loop
	@$(BIN)/python benchmarks/run.py
