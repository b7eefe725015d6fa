# quire: `make run` serves a model, `make test` passes the tests, `make help` lists the rest.

VERSION := 0.1.0
MODE ?= release
OUT := build/$(MODE)
NVCC ?= $(shell command -v nvcc 2>/dev/null)
CUDA ?= $(if $(NVCC),1,0)
COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

CC := gcc
CFLAGS := -std=c11 -D_GNU_SOURCE -O2 -g -fno-omit-frame-pointer -ffp-contract=off -pthread -I. \
	-Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -MMD -MP
PILLAR_CFLAGS := -Wconversion -Wno-sign-conversion
LDLIBS := -lmicrohttpd -lcjson -lyaml -lm -pthread
NVCCFLAGS := -std=c++17 -O3 -lineinfo -I. -Werror all-warnings --fmad=true \
	-gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=sm_80 \
	-gencode arch=compute_89,code=sm_89 -Xcompiler -Wall,-Wextra

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
CUDA_HOME := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_LIBS := -L$(CUDA_HOME)/lib64 -L$(CUDA_HOME)/targets/x86_64-linux/lib -lcudart_static -lstdc++ -ldl -lrt
endif

# ---- rules ----
isa = $(if $(findstring avx512bf16,$(1)),-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mavx2 -mfma -mf16c,\
	$(if $(findstring avx512,$(1)),-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c,\
	$(if $(findstring avx2,$(1)),-mavx2 -mfma -mf16c)))
extra = $(if $(filter kernels/% kvcache/% model/% scheduler/%,$(1)),$(PILLAR_CFLAGS)) \
	$(if $(filter kernels/%,$(1)),-O3) $(call isa,$(1))

$(OUT)/server/%.c.o: CFLAGS += -DQUIRE_VERSION='"$(VERSION)"' -DQUIRE_CUDA=$(CUDA)
$(OUT)/%.c.o: %.c
	@mkdir -p $(@D)
	$(QUIET)$(CC) $(CFLAGS) $(call extra,$<) -c $< -o $@
$(OUT)/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(QUIET)$(NVCC) $(NVCCFLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@
QUIET := $(if $(V),,@echo "  $(MODE)  $$(echo $$@ | sed 's|$(OUT)/||')";)

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

$(UNIT): $(OUT)/%: $(OUT)/%.c.o $$(foreach room,$$(NEEDS_$$(call room_of,$$@)),$(OUT)/lib$$(room).a)
	$(QUIET)$(link)
$(SIM): $(OUT)/%: $(OUT)/%.c.o $(FAKE) $(foreach room,$(NEEDS_server),$(call library,$(room)))
	$(QUIET)$(link)
$(OUT)/tests/sim/sim_scheduler: $(OUT)/tests/sim/sim_scheduler.c.o $(call library,scheduler) $(call library,kvcache)
	$(QUIET)$(CC) $(LDFLAGS) -o $@ $^ -lm
$(OPS): $(OUT)/%: $(OUT)/%.c.o $(REFERENCE) $(call library,kernels)
	$(QUIET)$(link)
$(GOLDEN): $(OUT)/%: $(OUT)/%.c.o $(call library,model) $(call library,kernels)
	$(QUIET)$(link)
$(E2E): $(OUT)/%: $(OUT)/%.c.o $(FAKE) $(foreach room,$(NEEDS_server),$(call library,$(room)))
	$(QUIET)$(link)

-include $(shell find $(OUT) -name '*.d' 2>/dev/null)

##@ Use
.PHONY: build run deps help
build: $(OUT)/quire ## the daemon, build/release/quire; CUDA when nvcc is there, else the CPU alone
	@ln -sf release/quire build/quire
