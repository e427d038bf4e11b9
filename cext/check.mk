# Proofs of the compiled core, in plain C: no Python needed, so they also run under an emulator.
#
#   make kernel-check        this machine
#   make kernel-check-asan   the same under the address and undefined-behaviour sanitizers
#   make kernel-check-old    an x86-64 without AVX2 under qemu: no illegal instruction
#   make kernel-check-arm    AArch64 under qemu, without and with later extensions
#
# A recipe that lacks a tool says NOT RUN and exits 77.

CHECK_DIR     := build/check
CHECK_SOURCES := $(sort $(wildcard cext/src/*.c))
CHECK_HEADERS := $(wildcard cext/src/*.h cext/include/*.h) tests/check.h
CHECK_NAMES   := kernel_check kv_check math_check forward_check
CHECK_CFLAGS  := -std=c11 -O3 -ffp-contract=off -fno-trapping-math -fno-math-errno -fvisibility=hidden -pthread -Icext/include \
                 -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Werror
CHECK_ASAN    := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
# What must run here, so that a green check cannot mean "not tested".
CHECK_VARIANTS ?= scalar $(if $(filter x86_64,$(shell uname -m)),avx2 $(if $(shell grep -o -m1 avx512_vnni /proc/cpuinfo),avx512vnni)) \
                  $(if $(filter aarch64,$(shell uname -m)),neon)
ARM_CC        := aarch64-linux-gnu-gcc
ARM_QEMU      := qemu-aarch64
# `make kernel-check-arm ARM_HOW=` runs everything, in half an hour.
ARM_HOW       ?= quick

.PHONY: kernel-check kernel-check-asan kernel-check-old kernel-check-arm

# $(call need,command:package...) ends a recipe with 77 when a command is missing.
need = @for tool in $(1); do command -v $${tool%%:*} >/dev/null || { \
       echo "NOT RUN: $@ (missing $${tool\#*:})"; exit 77; }; done

kernel-check: $(CHECK_NAMES:%=$(CHECK_DIR)/%)
	$(CHECK_DIR)/kernel_check $(CHECK_VARIANTS)
	$(CHECK_DIR)/kv_check $(CHECK_VARIANTS)
	$(CHECK_DIR)/math_check
	$(CHECK_DIR)/forward_check

kernel-check-asan: $(CHECK_DIR)/kernel_check-asan $(CHECK_DIR)/kv_check-asan $(CHECK_DIR)/forward_check-asan
	$(CHECK_DIR)/kernel_check-asan $(CHECK_VARIANTS)
	$(CHECK_DIR)/kv_check-asan $(CHECK_VARIANTS)
	$(CHECK_DIR)/forward_check-asan quick

kernel-check-old:
	$(call need,qemu-x86_64:qemu-user)
	$(MAKE) --no-print-directory $(CHECK_DIR)/kernel_check $(CHECK_DIR)/kv_check $(CHECK_DIR)/forward_check
	qemu-x86_64 -cpu Nehalem $(CHECK_DIR)/kernel_check quick scalar
	qemu-x86_64 -cpu Nehalem $(CHECK_DIR)/kv_check quick scalar
	qemu-x86_64 -cpu Nehalem $(CHECK_DIR)/forward_check quick

kernel-check-arm:
	$(call need,$(ARM_CC):gcc-aarch64-linux-gnu $(ARM_QEMU):qemu-user)
	$(MAKE) --no-print-directory $(CHECK_NAMES:%=$(CHECK_DIR)/%-arm)
	$(ARM_QEMU) -cpu cortex-a72 $(CHECK_DIR)/kernel_check-arm $(ARM_HOW) neon
	$(ARM_QEMU) -cpu cortex-a76 $(CHECK_DIR)/kernel_check-arm $(ARM_HOW) neon_dotprod
	$(ARM_QEMU) -cpu max $(CHECK_DIR)/kernel_check-arm $(ARM_HOW) neon_i8mm
	@# what a core lacks is refused, not run without it
	! $(ARM_QEMU) -cpu cortex-a72 $(CHECK_DIR)/kernel_check-arm neon_dotprod
	! $(ARM_QEMU) -cpu cortex-a76 $(CHECK_DIR)/kernel_check-arm neon_i8mm
	$(ARM_QEMU) -cpu max $(CHECK_DIR)/kv_check-arm $(ARM_HOW) scalar neon neon_dotprod neon_i8mm
	$(ARM_QEMU) -cpu cortex-a72 $(CHECK_DIR)/math_check-arm
	$(ARM_QEMU) -cpu cortex-a72 $(CHECK_DIR)/forward_check-arm $(ARM_HOW)
	$(ARM_QEMU) -cpu max $(CHECK_DIR)/forward_check-arm $(ARM_HOW)

$(CHECK_DIR)/%: tests/%.c $(CHECK_SOURCES) $(CHECK_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(CHECK_CFLAGS) $< $(CHECK_SOURCES) -lm -o $@

$(CHECK_DIR)/%-asan: tests/%.c $(CHECK_SOURCES) $(CHECK_HEADERS)
	@mkdir -p $(@D)
	$(CC) $(CHECK_CFLAGS) $(CHECK_ASAN) $< $(CHECK_SOURCES) -lm -o $@

$(CHECK_DIR)/%-arm: tests/%.c $(CHECK_SOURCES) $(CHECK_HEADERS)
	@mkdir -p $(@D)
	$(ARM_CC) $(CHECK_CFLAGS) -static $< $(CHECK_SOURCES) -lm -o $@
