# SPDX-License-Identifier: Apache-2.0
"""What is booted, and the QEMU command line that boots it.

Pure: reads nothing and starts nothing. Options: qemu-system-x86_64(1) of QEMU 7.2 and later, and
docs/system/i386/amd-memory-encryption.rst of its source.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sevkit.errors import HostError, RecipeError
from sevkit.guest.channel import PORT_NAME
from sevkit.guest.launch import Launch, Qemu
from sevkit.image.cmdline import parameters

MEMORY_LIMIT_MIB = 1 << 20
ROOTFS_TAG = "rootfs"
"""Name of the 9p share that is the root of commands and containers."""
POLICIES: Mapping[str, int] = {"sev": 0x1, "sev-es": 0x5, "sev-snp": 0x30000}
"""No debugging; for SEV-ES its bit; for SNP SMT and the reserved bit (SEV, SNP ABI)."""

_FLASH_IN: Mapping[str, bool] = {"sev": True, "sev-es": True, "sev-snp": False}
_UNITS = {"": 1, "M": 1, "MB": 1, "MIB": 1, "G": 1024, "GB": 1024, "GIB": 1024}
# Memory that SEV encrypts reaches devices through bounce buffers only; a device without the modern
# interface can't say that it accepts them.
_VIRTIO = "disable-legacy=on,iommu_platform=on"


@dataclass(frozen=True)
class GuestSpec:
    """What of an image a boot needs. Memory in MiB."""

    kernel: Path
    cmdline: str
    initramfs: Path | None = None
    firmware: Path | None = None
    firmware_is_flash: bool = False
    """Whether it is the code half of a split build, which -bios does not load."""
    memory_mib: int = 512
    vcpus: int = 1
    cpu: str = "host"
    """CPU model of a launch with SEV; it is part of the launch digest."""
    modes: tuple[str, ...] = ()
    hashed_modes: tuple[str, ...] = ()
    """Those in which the firmware has a place for the hashes of kernel, initrd, command line."""
    hashes_at: int | None = None
    """Where that place is in guest memory; None without one."""
    hashes: bytes = b""
    """What QEMU would put there if this were SEV: `sevkit.firmware.hash_table`; a multiple of 8."""
    disk: Path | None = None
    """An image that the guest reads as its first virtio disk."""

    def in_flash(self, mode: str | None) -> bool:
        """Whether the firmware is a flash in `mode`, or without SEV: SNP takes memory."""
        return _FLASH_IN.get(mode or "", self.firmware_is_flash)


def parse_memory(flag: str, text: str, *, least_mib: int) -> int:
    """MiB of ``512M``, ``1G``, ``512 MiB`` or ``512``; `least_mib` is what the guest needs.

    Raises `RecipeError` for what is no size, too small for the guest, or beyond 1 TiB.
    """
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*([A-Za-z]*)\s*", text, re.ASCII)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise RecipeError(
            f"{flag}: '{text}' is not a size", hint=f"write MiB or GiB: {flag} 512M, {flag} 2G"
        )
    mib = int(match[1]) * unit
    if mib < least_mib:
        raise RecipeError(
            f"{flag}: {mib} MiB is too little for this image, which needs {least_mib} MiB",
            hint=f"{flag} {least_mib}M, or leave it out",
        )
    if mib > MEMORY_LIMIT_MIB:
        raise RecipeError(f"{flag}: {mib} MiB is more than 1 TiB", hint=f"{flag} 2G")
    return mib


def qemu_argv(
    qemu: Qemu,
    launch: Launch,
    spec: GuestSpec,
    *,
    agent_fd: int | None,
    console_fd: int,
    rootfs: Path | None = None,
    extra_args: Sequence[str] = (),
) -> list[str]:
    """The command line. `agent_fd` and `console_fd` are sockets that QEMU inherits.

    Without `agent_fd` the guest has no agent's port. `rootfs` is shared read-only.
    """
    tty = f"socket,id=console,fd={console_fd},mux=on"
    port = None if agent_fd is None else f"socket,id=agent,fd={agent_fd}"
    argv = [str(qemu.path), *guest_argv(launch, spec, console=tty, agent=port)]
    if rootfs is not None:
        options = "security_model=none,readonly=on,multidevs=remap"
        argv += ["-fsdev", f"local,id=rootfs,path={_quoted(rootfs)},{options}"]
        argv += ["-device", f"virtio-9p-pci,fsdev=rootfs,mount_tag={ROOTFS_TAG},{_VIRTIO}"]
    if spec.disk is not None:
        options = "if=none,id=disk,format=raw,readonly=on"
        argv += ["-drive", f"{options},file={_quoted(spec.disk)}"]
        argv += ["-device", f"virtio-blk-pci,drive=disk,{_VIRTIO}"]
    return [*argv, *extra_args]


def guest_argv(launch: Launch, spec: GuestSpec, *, console: str, agent: str | None) -> list[str]:
    """The arguments that make the guest, without QEMU itself, shares and disks.

    `console` and `agent` are options of -chardev with the ids ``console`` and ``agent``; the former
    says ``mux=on``, as serial line and virtio console share it.
    """
    argv = ["-name", "sevkit", "-nodefaults", "-no-user-config", "-no-reboot"]
    argv += ["-display", "none", "-monitor", "none"]
    argv += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]
    argv += _machine(launch, spec)
    argv += ["-m", f"{spec.memory_mib}M", "-smp", str(spec.vcpus)]
    argv += ["-kernel", str(spec.kernel), "-append", spec.cmdline]
    if spec.initramfs is not None:
        argv += ["-initrd", str(spec.initramfs)]
    argv += ["-chardev", console, "-serial", "chardev:console"]
    argv += ["-device", f"virtio-serial-pci,id=ports,max_ports=4,{_VIRTIO}"]
    if console_is_virtio(spec.cmdline):
        argv += ["-device", "virtconsole,bus=ports.0,chardev=console"]
    if agent is not None:
        argv += ["-chardev", agent]
        argv += ["-device", f"virtserialport,bus=ports.0,chardev=agent,name={PORT_NAME}"]
    return argv


def _machine(launch: Launch, spec: GuestSpec) -> list[str]:
    if not launch.is_sev:
        cpu = "host" if launch.accelerator == "kvm" else "max"
        argv = ["-machine", "q35,vmport=off", "-accel", launch.accelerator, "-cpu", cpu]
        if spec.firmware is None:
            return argv
        argv += _firmware(launch, spec, spec.firmware)
        return argv if spec.hashes_at is None else argv + in_memory(spec.hashes_at, spec.hashes)
    if spec.firmware is None:
        raise HostError(f"{launch.accelerator} needs firmware, and the image has none")
    is_snp = launch.accelerator == "sev-snp"
    policy = POLICIES[launch.accelerator]
    guest = f"{'sev-snp-guest' if is_snp else 'sev-guest'},id=sev0,cbitpos={launch.c_bit}"
    guest += f",reduced-phys-bits={launch.reduced_phys_bits},policy={policy:#x}"
    guest += ",kernel-hashes=on" if launch.accelerator in spec.hashed_modes else ""
    machine = "q35,confidential-guest-support=sev0,vmport=off"
    machine += ",kernel_irqchip=split" if is_snp else ""
    argv = ["-object", guest, "-machine", machine, "-accel", "kvm", "-cpu", spec.cpu]
    return argv + _firmware(launch, spec, spec.firmware)


def _firmware(launch: Launch, spec: GuestSpec, path: Path) -> list[str]:
    if not spec.in_flash(launch.accelerator):
        return ["-bios", str(path)]
    return ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_quoted(path)}"]


def in_memory(address: int, data: bytes) -> list[str]:
    """Put `data` into guest memory at every reset (docs/system/generic-loader.rst of QEMU)."""
    argv = []
    for offset in range(0, len(data), 8):
        value = int.from_bytes(data[offset : offset + 8], "little")
        argv += ["-device", f"loader,addr={address + offset:#x},data={value:#x},data-len=8"]
    return argv


def console_is_virtio(cmdline: str) -> bool:
    """Whether hvc0 is the only console: both would print every line twice."""
    consoles = [value or "" for name, value in parameters(cmdline) if name == "console"]
    return bool(consoles) and all(value.startswith("hvc0") for value in consoles)


def _quoted(path: Path) -> str:
    """A path inside an option list, where a comma is written twice."""
    return str(path).replace(",", ",,")
