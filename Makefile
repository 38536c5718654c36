# Everything here sets itself up, in .venv and .cache, from nothing but a Python and (for the real
# servers) a Consul and a ZooKeeper or an apt to download them with. Set-up is keyed on
# pyproject.toml by stamp files: the second run starts at once.

SHELL := bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Real servers, real time and two cores: suites side by side would only disturb each other. Inside one, most tests wait
# for something, so two at a time take half as long (and three two thirds of that, which is how to look for flaky tests). Each
# class stays together, for its servers.
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# The Python of .venv: the newest supported one that works, unless told otherwise.
PYTHON ?= $(shell .ci/pythons | head -n 1)
PARALLEL := -n 2 --dist loadscope
# More arguments for pytest, as in: make test-main ARGS='-k consul -x'
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
PY_CONSUL := .cache/venvs/py-consul
UVLOOP := .cache/venvs/uvloop
LOGS := .cache/logs
CODE = $(wildcard registry_drain tests benchmarks examples)
# pytest's output is shown and kept: `make test` repeats the closing lines of each run at its end.
LOGGED = | tee $(LOGS)/$@.log

.PHONY: help venv servers demo test test-main test-slow test-uvloop test-py-consul test-pythons test-wheel compose-test \
	cluster-faults recap lint format bench clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile
	@echo "  ARGS='-k signal' goes to pytest or to the command; PARALLEL='-n 4', PYTHON=python3.12 for the environment"

venv: $(STAMP) ## set up .venv with every extra and the development tools

# Upgrading pip first: installing a dependency group needs 25.1, and Python 3.10 brings 23.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo 'No Python 3.10 to 3.13 with venv found; try make PYTHON=...' >&2; exit 1; }
	@echo "setting up .venv with $(PYTHON) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install -q -e '.[all]' --group dev
	@touch $@

servers: ## get a real Consul and a real ZooKeeper, where none is installed
	@.ci/servers

demo: $(STAMP) ## a rolling restart under load, stopped naively and drained
	@$(BIN)/registry-drain demo $(ARGS)

test: ## everything: real servers, uvloop, py-consul, every Python found, the wheel
	@rm -rf $(LOGS)
	@# Each part runs even if an earlier one failed; the last line decides.
	@failed=; \
	for part in test-wheel test-main test-slow test-uvloop test-py-consul test-pythons; do \
		$(MAKE) $$part || failed="$$failed $$part"; \
	done; \
	echo; .ci/recap; \
	if [ -n "$$failed" ]; then echo "FAILED:$$failed"; exit 1; fi

test-main: $(STAMP) servers ## the suite on the main Python
	@mkdir -p $(LOGS)
	@$(BIN)/python -m pytest -m 'not compose and not slow' $(PARALLEL) $(ARGS) $(LOGGED)

test-slow: $(STAMP) servers ## and what puts processes under load, one test at a time
	@mkdir -p $(LOGS)
	@$(BIN)/python -m pytest -m 'slow and not compose' $(ARGS) $(LOGGED)

# uvicorn, gunicorn and granian take uvloop and httptools as soon as they find them, and the main suite is to see asyncio
# and h11: hence an environment of its own.
$(UVLOOP)/.installed: pyproject.toml $(STAMP)
	@echo 'setting up an environment with uvloop and httptools ...'
	@rm -rf $(UVLOOP)
	@$(BIN)/python -m venv $(UVLOOP)
	@$(UVLOOP)/bin/python -m pip install -q --upgrade 'pip>=25.1'
	@$(UVLOOP)/bin/python -m pip install -q -e '.[all]' --group test --group uvloop
	@touch $@

ASYNC_SERVERS := aiohttp or asgi or async or granian or gunicorn or hosted or httptools or hypercorn or uvicorn or uvloop
test-uvloop: $(UVLOOP)/.installed ## whatever runs in an event loop, with uvloop and httptools
	@mkdir -p $(LOGS)
	@failed=; \
	$(UVLOOP)/bin/python -m pytest tests/servers tests/hosted tests/examples tests/handover tests/test_async_service.py \
		-k '$(ASYNC_SERVERS)' -m 'not consul and not zookeeper and not slow' $(PARALLEL) $(ARGS) $(LOGGED) || failed=1; \
	$(UVLOOP)/bin/python -m pytest tests/hosted -k '$(ASYNC_SERVERS)' -m 'slow and not consul and not zookeeper' \
		$(ARGS) | tee $(LOGS)/$@-slow.log || failed=1; \
	[ -z "$$failed" ]

# py-consul installs the same import name as python-consul, hence an environment of its own.
$(PY_CONSUL)/.installed: pyproject.toml $(STAMP)
	@echo 'setting up an environment with py-consul ...'
	@rm -rf $(PY_CONSUL)
	@$(BIN)/python -m venv $(PY_CONSUL)
	@$(PY_CONSUL)/bin/python -m pip install -q --upgrade 'pip>=25.1'
	@$(PY_CONSUL)/bin/python -m pip install -q -e '.[zookeeper,cli,servers]' --group test --group py-consul
	@touch $@

test-py-consul: $(PY_CONSUL)/.installed servers ## whatever concerns Consul and its client, with py-consul
	@mkdir -p $(LOGS)
	@$(PY_CONSUL)/bin/python -m pytest -k consul -m 'not slow and not compose' $(PARALLEL) $(ARGS) $(LOGGED)

# One level of recursion per interpreter, so that each has its own stamp, log and outcome.
test-pythons: $(STAMP) ## the suite without registries and load, on every other Python 3.10 to 3.13 found
	@main=$$($(BIN)/python -c 'import sys; print(sys.version_info[:2])'); failed=; \
	for python in $$(.ci/pythons); do \
		if [ "$$($$python -c 'import sys; print(sys.version_info[:2])')" != "$$main" ]; then \
			version=$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
			less=; [ "$$python" = "$$(.ci/pythons | tail -n 1)" ] || less='and not server_contract'; \
			$(MAKE) test-python-$$version OTHER=$$python LESS="$$less" || failed="$$failed $$version"; \
		fi; \
	done; \
	if [ -n "$$failed" ]; then echo "failed on Python$$failed"; exit 1; fi

.cache/venvs/python-%/.installed: pyproject.toml
	@echo 'setting up an environment with $(or $(OTHER),python$*) ...'
	@rm -rf $(@D)
	@$(or $(OTHER),python$*) -m venv $(@D)
	@$(@D)/bin/python -m pip install -q --upgrade 'pip>=25.1'
	@$(@D)/bin/python -m pip install -q -e '.[all]' --group test
	@touch $@

.PRECIOUS: .cache/venvs/python-%/.installed
test-python-%: .cache/venvs/python-%/.installed
	@mkdir -p $(LOGS)
	@$(<D)/bin/python -m pytest -m 'not consul and not zookeeper and not slow and not compose $(LESS)' $(PARALLEL) $(ARGS) $(LOGGED)

# bash runs EXIT's trap after SIGTERM only if that is trapped as well.
ENGINE_ENDS = trap '.ci/engine stop' EXIT; trap 'exit 143' TERM HUP;

# The engine that was started for the tests is stopped after them, whatever became of them, and whatever still runs in it.
# Where none is to be had (status 3) that is a failure in CI alone. The image is built once, for all services and workers.
compose-test: $(STAMP) ## docker-compose.yml, under load and faults; gets an engine where there is none
	@mkdir -p $(LOGS)
	@$(ENGINE_ENDS) \
	.ci/engine start || { status=$$?; if [ $$status = 3 ] && [ -z "$$CI" ]; then exit 0; fi; exit $$status; }; \
	. .cache/engine/environment; \
	docker compose build calculator-consul >$(LOGS)/compose-build.log 2>&1 || { tail $(LOGS)/compose-build.log; exit 1; }; \
	timeout --foreground --signal INT --kill-after 60 900 \
		$(BIN)/python -m pytest tests/compose --timeout 300 -n 2 $(ARGS) $(LOGGED)

cluster-faults: $(STAMP) ## what restarts and faults do to the cluster of docker-compose.yml, as a table
	@$(ENGINE_ENDS) .ci/engine start; . .cache/engine/environment; \
	$(BIN)/python -m benchmarks.cluster $(ARGS)

test-wheel: $(STAMP) ## build the wheel, install it with every extra, try both commands
	@.ci/smoke $(BIN)/python

lint: $(STAMP) ## ruff and mypy --strict
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy $(CODE)

format: $(STAMP) ## apply ruff's fixes and formatting
	@$(BIN)/ruff check --fix $(CODE)
	@$(BIN)/ruff format $(CODE)

bench: $(STAMP) servers ## the benchmarks; ratios, in one run
	@for each in $(filter-out %/__init__.py,$(wildcard benchmarks/*.py)); do \
		echo "== $$each"; $(BIN)/python -m benchmarks.$$(basename $$each .py) || exit 1; \
	done

clean: ## remove what make created
	@rm -rf .venv .cache dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
