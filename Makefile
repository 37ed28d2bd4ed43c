# One verb each, the same here and in CI. Every verb sets up what it needs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIN    := $(BIN)/uv pip compile --quiet --no-config --universal --upgrade --generate-hashes --no-annotate --no-header --python-version 3.11

.PHONY: help histories cluster setup demo test test-fast test-gateways test-instances simulate e2e web system drivers faults trees crashes lint style journeys format types imports docs fleet-pictures pictures cover bench reference manual schema packages pins clean
.DEFAULT_GOAL := help

help: ## show the verbs
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY) ## make the virtual environment with everything that the other verbs need

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "Python 3.11 or newer is needed as $(PYTHON). On Debian: apt-get install -y python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "Python's venv module is missing. On Debian: apt-get install -y python3-venv"; exit 1; }
	@echo "Installing what the verbs need into $(VENV): this takes some minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[registry]' --group dev --group docs
	@# Tests compile a stand-in for NVML: with the machine's C compiler, else with one from PyPI.
	@command -v cc >/dev/null || command -v gcc >/dev/null || $(BIN)/python -m pip install --quiet 'ziglang>=0.13,<1'
	@touch $(READY)

demo: $(READY) ## a registry and three agents on this machine, live, until Ctrl-C
	@$(BIN)/gpu-agent demo $(DEMO)

test: $(READY) ## every test but those of `cluster`, JOBS files at a time, and how long it took; those that need root are skipped without it
	@begun=$$(date +%s); $(BIN)/python -m pytest -q -n $(or $(JOBS),3) --dist loadfile --no-loadscope-reorder --ignore=tests/cluster $(ARGS); code=$$?; \
	  echo "make test took $$(( $$(date +%s) - begun )) s"; exit $$code

# Tests that start no other program, for `test-fast`.
FAST := tests/wire tests/session tests/registry tests/store --ignore-glob='tests/store/test_etcd*' tests/probe/health tests/runtime/config tests/cli/output

test-fast: $(READY) ## what a change needs, in under a minute: lint, and the tests that start no other program
	$(BIN)/ruff check --quiet .
	@begun=$$(date +%s); $(BIN)/python -m pytest -q -n $(or $(JOBS),4) --dist worksteal $(or $(ARGS),$(FAST)); code=$$?; \
	  echo "make test-fast took $$(( $$(date +%s) - begun )) s"; exit $$code

test-gateways: $(READY) ## the tests of nodes and of their registry once more, with gateways between
	TEST_GATEWAYS=1 $(BIN)/python -m pytest -q -n $(or $(JOBS),3) tests/registry tests/server/test_service.py tests/server/api/test_nodes.py $(ARGS)

test-instances: $(READY) ## the tests of the operators' API once more, through a standby that forwards to a leader, on three members of etcd
	TEST_ETCD=1 TEST_FORWARDED=1 $(BIN)/python -m pytest -q -n $(or $(JOBS),2) tests/server/api tests/server/test_service.py $(ARGS)

simulate: $(READY) ## the registry under chaos: SEEDS=0-9999, or one again with TRACE=1
	@$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),0-499) $(if $(NODES),--nodes $(NODES)) $(if $(TRACE),--trace)

e2e: $(READY) ## whole programs only
	$(BIN)/python -m pytest -q tests/e2e $(ARGS)

web: $(READY) ## pages in the machine's chromium; on Debian: apt-get install -y --no-install-recommends chromium
	$(BIN)/python -m pytest -q tests/web $(ARGS)

system: $(READY) ## Debian 12 and 13, booted with systemd: root, debootstrap and systemd-container
	$(BIN)/python -m pytest -q tests/system $(ARGS)

drivers: $(READY) ## the probe against drivers that misbehave at random: CASES of them, from SEED on
	$(BIN)/python -m tests.nvml_fake.campaign --cases $(or $(CASES),6000) --seed $(or $(SEED),0)

faults: $(READY) ## the table of every fault of a GPU: seen after how long, said how, healed after
	@$(BIN)/python -m tests.nvml_fake.fault_table

trees: $(READY) ## the model scan against random trees of files: TREES of them, from SEED on
	$(BIN)/python -m tests.probe.models.random_trees --trees $(or $(TREES),1000) --seed $(or $(SEED),0)

histories: $(READY) ## clients on every address of registries that are killed and frozen; is what they saw linearizable? RUNS, FROM, SEED, FORMS, FREEZE, SECONDS
	$(BIN)/python -m tests.histories $(if $(RUNS),--runs $(RUNS)) $(if $(FROM),--from $(FROM)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(FORMS),--forms $(FORMS)) $(if $(FREEZE),--freeze $(FREEZE)) $(if $(SECONDS),--seconds $(SECONDS))

cluster: $(READY) ## instances, etcd and agents on machines of their own (namespaces: root) that lose each other; FULL=1
	$(if $(FULL),CLUSTER_FULL=1) $(BIN)/python -m pytest -q tests/cluster $(ARGS)

crashes: $(READY) ## kill a real registry at every kind of point, KILLS times each, and look for losses
	$(BIN)/python -m tests.e2e.crashes.campaign --kills $(or $(KILLS),20)

lint: $(READY) ## ruff: rules and format; sizes of modules, satellites and the glossary's words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tools.style_gate

style: $(READY) ## sizes of modules, satellites, the glossary's words: what no linter knows
	$(BIN)/python -m tools.style_gate

journeys: $(READY) ## files and calls that six journeys pass, traced at run time: SOURCE=OTHER/agent
	$(BIN)/python -m tools.journeys $(if $(SOURCE),--source $(SOURCE)) $(if $(FILES),--files)

format: $(READY) ## write the format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## mypy, strict
	$(BIN)/mypy

imports: $(READY) ## the contracts between floors
	$(BIN)/lint-imports

docs: $(READY) ## the site of docs/, into dist/html; a dead link or anchor fails
	@$(BIN)/python -m tools.site

fleet-pictures: $(READY) ## pictures of every page of the fleet page, into dist/fleet
	$(BIN)/python -m tests.web.pictures dist/fleet $(ARGS)

pictures: $(READY) ## draw the pictures of docs/ again, from real runs; needs chromium, as `web`
	$(BIN)/python -m tools.pictures $(ARGS)

# Tests of the floors without I/O.
PURE := tests/wire tests/session tests/registry tests/scenarios

cover: $(READY) ## coverage of the pure floors, lines and branches, at least 95 %
	$(BIN)/python -m pytest -q -n $(or $(JOBS),3) $(PURE) --cov --cov-report=term

bench: $(READY) ## every figure that the documentation states, each by its own program
	@for program in benchmarks/*.py; do echo "== $$program"; $(BIN)/python $$program || exit 1; done

reference: $(READY) ## write docs/reference/cli.md, the tables of settings, metrics and alerts, docs/monitoring and systemd/*.toml.example from the code
	$(BIN)/python -m tools.cli_reference docs/reference/cli.md
	$(BIN)/python -m tools.settings_docs
	$(BIN)/python -m tools.metrics_docs
	$(BIN)/python -m tools.alert_rules
	$(BIN)/python -m tools.dashboards

manual: $(READY) ## write the manual pages and the shells' completions into dist/share
	$(BIN)/python -m tools.man_pages dist/share/man
	@mkdir -p dist/share/completions
	@for shell in bash zsh fish; do $(BIN)/gpu-agent completion $$shell > dist/share/completions/$$shell || exit 1; done

schema: $(READY) ## write docs/reference/schema and docs/reference/documents.md from the models and the routes
	$(BIN)/gpu-agent schema --write docs/reference/schema
	$(BIN)/python -m tools.openapi docs/reference/schema/openapi.json
	$(BIN)/python -m tools.api_docs

packages: $(READY) ## the .deb and the .rpm of agent and registry, into dist/: ARCH=arm64, ONLY=deb, RELEASE=a version
	@$(BIN)/python -m pip install --quiet --group packages
	$(BIN)/python packaging/make_packages.py --arch $(or $(ARCH),amd64) $(if $(RELEASE),--release $(RELEASE)) \
	  $(if $(ONLY),--only $(ONLY)) $(if $(WORK),--work $(WORK)) $(or $(DIST),dist)

pins: $(READY) ## choose again, within pyproject.toml, the versions in the packages
	@$(BIN)/python -m pip install --quiet --group packages
	$(PIN) --output-file packaging/pins/agent.txt pyproject.toml
	$(PIN) --output-file packaging/pins/registry.txt --constraint packaging/pins/agent.txt --extra registry \
	  $$(sed -n 's/^\([a-z0-9-]*\)==.*/--no-emit-package \1/p' packaging/pins/agent.txt) pyproject.toml

clean: ## remove what the verbs made
	rm -rf $(VENV) .cache .coverage .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
