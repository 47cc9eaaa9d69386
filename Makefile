# harpoon's front door. Each target does all its own set-up; the work is in Meson, guest/ and scripts/.

PREFIX ?= /usr/local
DESTDIR ?=
# Where harpoon.conf is looked for: /etc for the usual prefixes, below PREFIX for others.
SYSCONFDIR ?= $(if $(filter /usr /usr/local,$(PREFIX)),/etc,$(PREFIX)/etc)
# Seconds per fuzz target of `make fuzz`
FUZZ_SECONDS ?= 60
# Arguments for pytest in the nested host, say '-k hello'; those marked nested and nested_kvm without
NESTED ?=

SHELL := /bin/bash
# Debian's own tools, whatever else a user's PATH puts before them.
export PATH := /usr/sbin:/usr/bin:/sbin:/bin
MESON := /usr/bin/meson
PYTHON := /usr/bin/python3
say = @printf '=== %s %s\n' "$$(date +%H:%M:%S)" $(1)

HOST := build/host
ASAN := build/asan
AGENT := build/guest-agent
GUEST := build/guest
INSTALL := build/install

.DEFAULT_GOAL := help
.PHONY: help setup build guest host asan agent demo test test-nested bench lint fuzz coverage install clean

help:
	@echo 'make demo       run a container in its own virtual machine, under a private containerd'
	@echo 'make test       everything that can be tested on this machine'
	@echo 'make test-nested  the kvm backend, on the KVM of an emulated host'
	@echo 'make install    PREFIX=$(PREFIX) DESTDIR=$(DESTDIR): for the containerd of this machine'
	@echo
	@echo 'make build      host programs, agent, guest kernel and initrd, below build/'
	@echo 'make bench      start-up times and memory, beside runc'
	@echo 'make lint       formatting, static analysis, spelling'
	@echo 'make fuzz       every fuzz target for FUZZ_SECONDS=$(FUZZ_SECONDS)'
	@echo 'make coverage   which code the tests run, in build/coverage'
	@echo 'make setup      only the packages (root)'
	@echo 'make clean      remove build/'

setup:
	@scripts/setup

# --- what is built

build: host guest

$(HOST)/build.ninja:
	$(MESON) setup --werror $(HOST)

host: $(HOST)/build.ninja
	$(call say,'building the host programs')
	@ninja -C $(HOST)

$(ASAN)/build.ninja:
	$(MESON) setup --werror -Db_sanitize=address,undefined $(ASAN)

asan: $(ASAN)/build.ninja
	$(call say,'building the host programs with sanitizers')
	@ninja -C $(ASAN)

$(AGENT)/build.ninja:
	$(MESON) setup --werror -Dpart=guest --native-file scripts/musl.ini $(AGENT)

agent: $(AGENT)/build.ninja
	$(call say,'building the agent of the guest')
	@ninja -C $(AGENT)

guest: $(GUEST)/vmlinux $(GUEST)/initrd

$(GUEST)/vmlinux: guest/build-kernel guest/pch-cc.c $(wildcard guest/config/* guest/kernel/* guest/pch/*)
	$(call say,'building the guest kernel (minutes the first time; kept in the cache folder of the user)')
	@guest/build-kernel $(GUEST)
	@touch $@

$(GUEST)/initrd: guest/build-initrd agent
	@mkdir -p $(GUEST)
	@if [ ! -e $@ ] || [ $(AGENT)/src/agent/harpoon-init -nt $@ ] || [ $< -nt $@ ]; then \
		guest/build-initrd $(AGENT)/src/agent/harpoon-init $@; \
	fi

# --- what is run

demo:
	@scripts/setup build run
	@$(MAKE) --no-print-directory build
	@scripts/demo

test:
	@scripts/setup build run test
	@$(MAKE) --no-print-directory build asan
	@scripts/make-images
	@scripts/get-clients
	@scripts/get-qemu
	@tests/run

test-nested:
	@scripts/setup build run test
	@$(MAKE) --no-print-directory build
	@scripts/make-images
	@tests/run --nested $(NESTED)

bench:
	@scripts/setup build run
	@$(MAKE) --no-print-directory build
	@bench/run

lint:
	@scripts/setup build lint
	@scripts/lint

fuzz:
	@scripts/setup build lint
	@scripts/fuzz $(FUZZ_SECONDS)

coverage:
	@scripts/setup build run test lint
	@$(MAKE) --no-print-directory guest
	@scripts/make-images
	@scripts/coverage

# --- installation

$(INSTALL)/build.ninja:
	$(MESON) setup --werror --prefix=$(PREFIX) --sysconfdir=$(SYSCONFDIR) --libdir=lib $(INSTALL)

# The prefix is compiled in, so an installation has a build folder of its own.
install: guest $(INSTALL)/build.ninja
	@$(MESON) configure --prefix=$(PREFIX) --sysconfdir=$(SYSCONFDIR) $(INSTALL)
	@ninja -C $(INSTALL)
	@DESTDIR="$(DESTDIR)" scripts/install $(INSTALL) $(GUEST) $(PREFIX) $(SYSCONFDIR)

clean:
	rm -rf build
