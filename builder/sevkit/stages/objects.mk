# SPDX-License-Identifier: Apache-2.0
# Lists the object files that a configured kernel tree will compile, by asking its own Makefiles.
#
#   make -rRs -f objects.mk obj=.        in the tree; a line "object PATH" for each
#
# Never with -j: lines of concurrent processes would run into each other.
#
# An estimate for a progress bar: what the Makefiles add by other means than obj-y, lib-y and
# their like is not seen.

.DEFAULT_GOAL := list
list:

include .config

this := $(lastword $(filter %objects.mk,$(MAKEFILE_LIST)))
srctree := .
SRCARCH := x86
src := $(obj)
BITS := 64
ARCH_LIB := lib/ arch/x86/lib/
ARCH_DRIVERS := $(if $(CONFIG_PCI),arch/x86/pci/) $(if $(CONFIG_PM),arch/x86/power/) arch/x86/boot/
obj-y :=
lib-y :=
setup-y :=
vmlinux-objs-y :=

-include $(firstword $(wildcard $(obj)/Kbuild $(obj)/Makefile))

parts = $(strip $($(1:.o=-objs)) $($(1:.o=-y)))
objects := $(sort $(notdir $(filter %.o,$(obj-y) $(lib-y) $(setup-y) $(vmlinux-objs-y))))
expanded := $(sort $(foreach object,$(objects),$(or $(call parts,$(object)),$(object))))
folders := $(sort $(patsubst %/,%,$(filter %/,$(obj-y) $(lib-y)))) \
	$(if $(filter arch/x86/boot,$(obj)),compressed) \
	$(if $(filter arch/x86/realmode,$(obj)),rm)
$(foreach object,$(filter %.o,$(expanded)),$(info object $(patsubst ./%,%,$(obj)/$(object))))

.PHONY: list $(addprefix folder-,$(folders))
list: $(addprefix folder-,$(folders))
$(addprefix folder-,$(folders)): folder-%:
	@$(MAKE) -rRs -f $(this) obj=$(patsubst ./%,%,$(obj)/$*)
