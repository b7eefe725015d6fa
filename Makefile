# quire: `make run` serves a model, `make test` passes the tests, `make help` lists the rest.

VERSION := 0.1.0
MODE ?= release
NVCC ?= $(shell command -v nvcc 2>/dev/null)
CUDA ?= $(if $(NVCC),1,0)
# A build without CUDA where nvcc is has a folder of its own, so that objects never mix.
OUT := build/$(MODE)$(if $(filter release0,$(MODE)$(CUDA)),$(if $(NVCC),-cpu))
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

CC := gcc
CFLAGS := -std=c11 -D_GNU_SOURCE -O2 -g -fno-omit-frame-pointer -ffp-contract=off -pthread -I. \
	-Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -MMD -MP
PILLAR_CFLAGS := -Wconversion -Wno-sign-conversion
LDLIBS := -lmicrohttpd -lcjson -lyaml -lpcre2-8 -lutf8proc -lm -pthread
NVCCFLAGS := -std=c++17 -O3 -lineinfo -I. -Werror all-warnings --fmad=true \
	-Xcompiler -Wall,-Wextra,-fno-exceptions,-fno-threadsafe-statics

ifeq ($(MODE),asan)
CFLAGS += -fsanitize=address,undefined -fno-sanitize-recover=all
LDFLAGS += -fsanitize=address,undefined
CUDA := 0
endif
ifeq ($(MODE),tsan)
CFLAGS += -fsanitize=thread
LDFLAGS += -fsanitize=thread
CUDA := 0
endif
ifeq ($(MODE),fuzz)
CC := clang
CFLAGS += -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
LDFLAGS += -fsanitize=address,undefined
CUDA := 0
endif

# ---- sources: every room is a library; a new file needs no line here ----
ROOMS := kernels kvcache model scheduler server
SOURCES_kernels := $(wildcard kernels/*.c kernels/cpu/*.c)
SOURCES_kernels += build/tuned_builtin.c
SOURCES_kernels := $(filter-out $(if $(filter 1,$(CUDA)),kernels/backend_none.c),$(SOURCES_kernels))
SOURCES_kvcache := $(wildcard kvcache/*.c)
SOURCES_model := $(wildcard model/*.c model/load/*.c model/text/*.c model/arch/*.c)
SOURCES_scheduler := $(wildcard scheduler/*.c)
SOURCES_server := $(filter-out server/main.c,$(wildcard server/*.c))
CUDA_SOURCES := $(if $(filter 1,$(CUDA)),$(wildcard kernels/*.cu kernels/cuda/*.cu))

objects = $(patsubst %,$(OUT)/%.o,$(1))
library = $(OUT)/lib$(1).a
NEEDS_kernels := kernels
NEEDS_kvcache := kvcache
NEEDS_model := model kernels
NEEDS_scheduler := scheduler kvcache
NEEDS_server := server model scheduler kvcache kernels

.DEFAULT_GOAL := build
.SECONDEXPANSION:
.SECONDARY:
.DELETE_ON_ERROR:

define ROOM
$(OUT)/lib$(1).a: $$(call objects,$$(SOURCES_$(1)) $(if $(filter kernels,$(1)),$$(CUDA_SOURCES)))
	@rm -f $$@ && ar rcs $$@ $$^
endef
$(foreach room,$(ROOMS),$(eval $(call ROOM,$(room))))

ifeq ($(CUDA),1)
comma := ,
CUDA_HOME := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -L$(CUDA_HOME)/targets/x86_64-linux/lib -lcudart_static -ldl -lrt
endif

# ---- rules ----
isa = $(if $(findstring avx512bf16,$(1)),-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mavx2 -mfma -mf16c,\
	$(if $(findstring avx512,$(1)),-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c,\
	$(if $(findstring avx2,$(1)),-mavx2 -mfma -mf16c)))
extra = $(if $(filter kernels/% kvcache/% model/% scheduler/%,$(1)),$(PILLAR_CFLAGS)) \
	$(if $(filter release,$(MODE)),$(if $(filter kernels/%,$(1)),-O3),-O1) $(call isa,$(1))

# Kernels that only Hopper runs are not compiled for others. GPUs newer than all of these get theirs
# from the code of compute_80, by the driver.
hopper_only = kernels/cuda/matmul.cu kernels/cuda/matmul_packed.cu
gpus = -gencode arch=compute_90a,code=sm_90a $(if $(filter $(hopper_only),$(1)),,\
	-gencode arch=compute_80,code=[sm_80,compute_80])

# The commit goes into one file, which is made anew when another one is checked out.
$(shell mkdir -p $(OUT); echo $(COMMIT) | cmp -s - $(OUT)/commit || echo $(COMMIT) >$(OUT)/commit)
$(OUT)/server/command.c.o: $(OUT)/commit
$(OUT)/server/command.c.o: CFLAGS += -DQUIRE_COMMIT='"$(COMMIT)"'
$(OUT)/server/%.c.o: CFLAGS += -DQUIRE_VERSION='"$(VERSION)"' -DQUIRE_CUDA=$(CUDA)
$(OUT)/%.c.o: %.c
	@mkdir -p $(@D)
	$(QUIET)$(CC) $(CFLAGS) $(call extra,$<) -c $< -o $@
$(OUT)/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(QUIET)$(NVCC) $(NVCCFLAGS) $(call gpus,$<) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

# configs/tune in one string: measured tables travel inside the binary (kernels/tuned.h).
TUNE_TABLES := $(sort $(wildcard configs/tune/*.txt))
build/tuned_builtin.c: $(TUNE_TABLES) configs/tune Makefile
	@mkdir -p $(@D)
	@{ echo '#include "kernels/tuned.h"'; echo 'const char tuned_builtin[] ='; \
	sed 's/[\\"]/\\&/g; s/.*/"&\\n"/' $(TUNE_TABLES) /dev/null; echo '"";'; } >$@.$$$$ && mv $@.$$$$ $@
QUIET = $(if $(V),,@echo "  $(MODE)  $(patsubst $(OUT)/%,%,$@)";)

$(OUT)/quire: $(OUT)/server/main.c.o $(foreach room,$(NEEDS_server),$(call library,$(room)))
	$(QUIET)$(CC) $(LDFLAGS) -o $@ $< -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(LDLIBS) $(CUDA_LIBS)

# ---- tests: tests/unit/test_ROOM_NAME.c links ROOM and what ROOM may include ----
HELPERS := $(call objects,$(wildcard tests/*.c))
FAKE := $(OUT)/tests/fake_model.c.o
REFERENCE := $(OUT)/tests/reference.c.o
UNIT := $(patsubst %.c,$(OUT)/%,$(wildcard tests/unit/test_*.c))
SIM := $(patsubst %.c,$(OUT)/%,$(wildcard tests/sim/sim_*.c))
OPS := $(patsubst %.c,$(OUT)/%,$(wildcard tests/kernels/test_*.c))
GOLDEN := $(patsubst %.c,$(OUT)/%,$(wildcard tests/golden/test_*.c))
E2E := $(patsubst %.c,$(OUT)/%,$(wildcard tests/e2e/test_*.c))
FUZZ := $(patsubst %.c,build/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
room_of = $(word 2,$(subst _, ,$(notdir $(1))))
link = $(CC) $(LDFLAGS) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(LDLIBS) $(CUDA_LIBS)

WRITER := $(call objects,tests/gguf_writer.c tests/gguf_gemma.c)
$(filter $(OUT)/tests/unit/test_model_%,$(UNIT)) $(GOLDEN) $(E2E): $(WRITER)
$(UNIT): $(OUT)/%: $(OUT)/%.c.o $$(foreach room,$$(NEEDS_$$(call room_of,$$@)),$(OUT)/lib$$(room).a)
	$(QUIET)$(link)
$(filter-out %/sim_scheduler,$(SIM)): $(OUT)/%: $(OUT)/%.c.o $(FAKE) $(foreach room,$(NEEDS_server),$(call library,$(room)))
	$(QUIET)$(link)
SIM_HELPERS := $(call objects,$(filter-out tests/sim/sim_%,$(wildcard tests/sim/*.c)))
$(OUT)/tests/sim/sim_scheduler: $(OUT)/tests/sim/sim_scheduler.c.o $(SIM_HELPERS) $(call library,scheduler) $(call library,kvcache)
	$(QUIET)$(CC) $(LDFLAGS) -o $@ $^ -lm
$(OPS): $(OUT)/%: $(OUT)/%.c.o $(REFERENCE) $(call library,kernels)
	$(QUIET)$(link)
$(GOLDEN): $(OUT)/%: $(OUT)/%.c.o $(call library,model) $(call library,kernels)
	$(QUIET)$(link)
E2E_HELPERS := $(call objects,$(filter-out tests/e2e/test_%,$(wildcard tests/e2e/*.c)))
$(E2E): $(OUT)/%: $(OUT)/%.c.o $(FAKE) $(E2E_HELPERS) $(foreach room,$(NEEDS_server),$(call library,$(room)))
	$(QUIET)$(link)

-include $(shell find $(OUT) -name '*.d' 2>/dev/null)

##@ Use
.PHONY: build run deps help
build: $(OUT)/quire ## the daemon, build/release/quire; CUDA when nvcc is there, else the CPU alone
	@ln -sf $(notdir $(OUT))/quire build/quire

MODEL_NAME := gemma-3-270m-q4_k_m.gguf
MODEL_FILE := build/models/$(MODEL_NAME)
MODEL_SHA256 := a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
MODEL ?= $(MODEL_FILE)
ARGS ?=
run: deps ## installs what is missing, builds, brings the embedded model once, serves it on port 8000
	@$(MAKE) --no-print-directory build
	@[ "$(MODEL)" != "$(MODEL_FILE)" ] || $(MAKE) --no-print-directory model
	exec build/quire serve $(MODEL) --config configs/quire.yaml $(ARGS)

.PHONY: model
model: ## brings the embedded model, 241 MB, to build/models and checks it
	@sh configs/model.sh $(MODEL_FILE) $(MODEL_SHA256)

# What the build and `make model` need; installed by apt-get, and nothing is done when all is there.
PACKAGES := gcc libc6-dev make git libmicrohttpd-dev libcjson-dev libyaml-dev libxxhash-dev \
	libpcre2-dev libutf8proc-dev \
	curl ca-certificates unzip python3-pip
PACKAGES_LINT := clang-format clang-tidy cppcheck
PACKAGES_FUZZ := clang libclang-rt-14-dev
missing = $(shell for p in $(1); do [ "$$(dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null)" = installed ] || echo $$p; done)
define install
	@missing="$(call missing,$(1))"; [ -z "$$missing" ] || { \
	echo "installing with apt-get:$$(printf ' %s' $$missing)"; \
	$(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing >/dev/null; }
endef
deps: ## installs the packages that are missing (apt-get; sudo when not root)
	$(call install,$(PACKAGES))
.PHONY: deps-lint deps-fuzz
deps-lint: deps
	$(call install,$(PACKAGES_LINT))
deps-fuzz: deps
	$(call install,$(PACKAGES_FUZZ))

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	/^[a-z][a-z-]*:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

##@ Test
.PHONY: test test-only asan tsan sim mutants fuzz lint release-check test-cuda test-cuda-memcheck
SIM_SEEDS ?= 100
SEED ?= 1
# SLOW=0 leaves out the real model against its truth: minutes under a sanitizer, and the tiny models
# of test_tiny run the same code.
SLOW ?= 1
TESTS := $(UNIT) $(OPS) $(if $(filter 0,$(SLOW)),$(filter-out %/test_truth,$(GOLDEN)),$(GOLDEN)) $(E2E)
test: deps ## builds and passes all tests; ends with "N passed, N failed"
	@$(MAKE) --no-print-directory -k build test-only

test-only: $(TESTS) $(SIM)
	@sh tests/run.sh $(OUT) $(SIM_SEEDS) $(TESTS) $(SIM)

asan: deps ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) --no-print-directory MODE=asan test-only
tsan: deps ## the tests under ThreadSanitizer
	@$(MAKE) --no-print-directory MODE=tsan test-only

SEEDS ?= 10000
sim: $(OUT)/tests/sim/sim_scheduler ## long simulation: make sim SEED=1 SEEDS=100000
	$< $(SEED) $(SEEDS)
mutants: ## plants bugs one at a time; the simulation must catch each
	@sh tests/mutants.sh

FUZZ_S ?= 60
FUZZ_OUT := build/fuzz
fuzz: deps-fuzz ## each fuzzer for FUZZ_S seconds
	@$(MAKE) --no-print-directory MODE=fuzz fuzz-only
.PHONY: fuzz-only
fuzz-only: $(FUZZ)
	@for f in $(FUZZ); do n=$$(basename $$f); mkdir -p build/fuzz/corpus/$$n; echo "== $$n"; \
	seeds=tests/fuzz/corpus/$$n; [ -d $$seeds ] || seeds=; \
	$$f -max_total_time=$(FUZZ_S) -rss_limit_mb=4096 -timeout=20 -print_final_stats=1 build/fuzz/corpus/$$n $$seeds \
	>build/fuzz/$$n.log 2>&1 || { tail -30 build/fuzz/$$n.log; exit 1; }; grep stat::number_of_executed build/fuzz/$$n.log; done
$(FUZZ): build/fuzz/%: build/fuzz/%.c.o build/fuzz/tests/gguf_writer.c.o build/fuzz/tests/gguf_gemma.c.o $(foreach room,$(NEEDS_server),build/fuzz/lib$(room).a)
	$(QUIET)$(CC) $(LDFLAGS) -fsanitize=fuzzer -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group $(LDLIBS)

lint: deps-lint ## format, include direction, sizes, clang-tidy, cppcheck, docs made from tables
	@sh tests/lint/lint.sh
release-check: ## everything: tests, sanitizers, lint, simulation, mutants, fuzzers
	@$(MAKE) --no-print-directory test && $(MAKE) --no-print-directory asan && $(MAKE) --no-print-directory tsan
	@$(MAKE) --no-print-directory lint && $(MAKE) --no-print-directory sim SEEDS=20000 && $(MAKE) --no-print-directory mutants
	@$(MAKE) --no-print-directory fuzz

test-cuda: $(OPS) $(GOLDEN) ## the ops and a small model on the GPU of this machine
	@for b in cuda portable; do for t in $(OPS); do $$t --backend $$b || exit 1; done; done
	@$(OUT)/tests/golden/test_cuda && for b in cuda portable; do \
	$(OUT)/tests/golden/test_truth --device $$b && $(OUT)/tests/golden/test_families --device $$b || exit 1; done
test-cuda-memcheck: $(OPS) ## the same under compute-sanitizer
	@sh tests/kernels/sanitize.sh $(OPS)

##@ Measure and ship
.PHONY: bench bench-cuda kernel-trace tune-table bundle docs format clean compile_commands.json
BENCH := $(patsubst %.c,$(OUT)/%,$(wildcard tests/bench/bench_*.c))
$(BENCH): $(OUT)/%: $(OUT)/%.c.o $(REFERENCE) $(foreach room,$(NEEDS_server),$(call library,$(room)))
	$(QUIET)$(link)
bench: build $(BENCH) ## kernels and engine on the CPU; JSON lines to build/bench.jsonl
	@rm -f build/bench.jsonl; for b in $(BENCH); do $$b | tee -a build/bench.jsonl; done
	@build/quire bench $(MODEL) $(ARGS) | tee -a build/bench.jsonl
bench-cuda: build $(OUT)/tests/bench/bench_attention ## attention and the engine on the GPU; JSON lines to build/bench.jsonl
	@$(OUT)/tests/bench/bench_attention | tee build/bench.jsonl
	@build/quire bench $(MODEL) --device cuda $(ARGS) | tee -a build/bench.jsonl
kernel-trace: ## a library that times every kernel of a program on the GPU: tests/bench/kernel_trace.c
	@mkdir -p build
	@$(CC) -Wall -Wextra -std=c17 -O2 -shared -fPIC -I$(CUDA_HOME)/include tests/bench/kernel_trace.c -o build/kernel_trace.so \
	$(foreach d,lib64 lib targets/x86_64-linux/lib extras/CUPTI/lib64,-L$(CUDA_HOME)/$(d) -Wl$(comma)-rpath$(comma)$(CUDA_HOME)/$(d)) -lcupti
tune-table: ## several models' tables of quire tune in one: make -s tune-table TABLES="A B" >configs/tune/NAME.txt
	@sh configs/tune/merge.sh $(TABLES)
bundle: build ## the daemon with its shared libraries beside it, for a machine without them
	@rm -rf build/bundle && mkdir -p build/bundle/lib
	@$(CC) $(LDFLAGS) -o build/bundle/quire $(OUT)/server/main.c.o -Wl,--start-group $(foreach room,$(NEEDS_server),$(call library,$(room))) -Wl,--end-group \
	-Wl,-rpath,'$$ORIGIN/lib' $(LDLIBS) $(CUDA_LIBS)
	@ldd build/bundle/quire | awk '$$3 ~ /^\// && $$1 !~ /^lib(c|m|dl|rt|pthread)\.so/ {print $$3}' | xargs -r -I{} cp -L {} build/bundle/lib/
	@du -sh build/bundle
docs: build ## docs and configs that are made from the tables
	@build/quire docs config >docs/config.md && build/quire docs api >docs/api.md && build/quire docs yaml >configs/quire.yaml
format: ## clang-format on all sources
	@git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs clang-format -i
compile_commands.json: ## for clangd and clang-tidy
	@$(MAKE) -Bn V=1 build CUDA=0 $(TESTS) $(SIM) | sh tests/lint/compile_commands.sh >$@
clean: ## removes what was built; the model stays
	@find build -mindepth 1 -maxdepth 1 ! -name models -exec rm -rf {} + 2>/dev/null || true
