# SPDX-License-Identifier: Apache-2.0
# What a person types in this folder. `make help` lists it.

PYTHON ?= /usr/bin/python3
RECIPE ?= sev-guest
RUNS   ?= 100000
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup image test matrix check lint format types unit fuzz bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install distribution packages and the Python environment
	@./setup.sh packages build test
	@PYTHON="$(PYTHON)" ./setup.sh python $(VENV)

image: ## build recipes/sev-guest.toml from source, boot it, print a summary (RECIPE=other)
	@./setup.sh packages build
	@PYTHON="$(PYTHON)" ./setup.sh python $(VENV)
	@$(BIN)/sevkit build $(RECIPE)
	@$(BIN)/sevkit boot $(RECIPE)

test: setup ## run every check and every test, those that boot guests included
	@$(MAKE) --no-print-directory lint types unit
	@$(BIN)/pytest -n 2 --dist loadfile tests/hostile tests/integration tests/guest

matrix: setup ## build an image twice, everything different that must not matter, kernel included
	@SEVKIT_MATRIX=whole $(BIN)/pytest -q tests/guest/test_reproducible.py tests/integration/test_toolchain.py

check: setup lint types unit ## lint, types and unit tests: about a minute once set up

lint:
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: ## let ruff write the code its way
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types:
	@$(BIN)/mypy

unit:
	@$(BIN)/pytest -q -n auto tests/unit

fuzz: setup ## give each reader 100 000 damaged inputs (RUNS=…), about half an hour on two cores
	@PYTHONPATH=builder $(BIN)/python -m tests.fuzz all --runs $(RUNS) --jobs $$(nproc)

bench: setup ## measure: build, no-op, initramfs, boot; ratios within one run
	@$(BIN)/python benchmarks/all.py

clean: ## delete images and logs; the store and the environment stay
	@rm -rf output
