# SPDX-License-Identifier: Apache-2.0
"""What a guest asks of its host: versions per mode, memory with bounce buffers, forbidden features.

Rules as rows and one formula; a manifest carries their results. Never asks the host: whoever
launches the guest compares.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from sevkit.errors import BuildError
from sevkit.firmware.ovmf import Mode
from sevkit.image.cmdline import parameters

MIB = 1 << 20

# --- versions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Versions:
    """The first versions that can do a mode, each as people write it.

    `qemu_kernel_hashes` is the first QEMU that measures kernel, initramfs and command line.
    """

    host_kernel: str
    guest_kernel: str
    qemu: str
    qemu_kernel_hashes: str


VERSIONS: Mapping[Mode, Versions] = MappingProxyType(
    {
        # Host: KVM_SEV_INIT, KVM_SEV_ES_INIT, KVM_SEV_SNP_LAUNCH_START. Guest: the C-bit, the #VC
        # handler, page validation. QEMU: the objects sev-guest (its policy bit 2 for ES) and
        # sev-snp-guest, their property kernel-hashes.
        "sev": Versions("4.16", "4.15", "2.12", "6.2"),
        "sev-es": Versions("5.11", "5.11", "6.0", "6.2"),
        "sev-snp": Versions("6.11", "5.19", "9.1", "9.1"),
    }
)

GUEST_SYMBOLS: Mapping[Mode, Sequence[str]] = MappingProxyType(
    {
        "sev": ("AMD_MEM_ENCRYPT", "SWIOTLB"),
        "sev-es": ("AMD_MEM_ENCRYPT", "SWIOTLB"),
        "sev-snp": ("AMD_MEM_ENCRYPT", "SWIOTLB"),
    }
)
"""Kernel options without which a guest does not come up in the mode."""


def kernel_problems(mode: Mode, version: str, config: str) -> list[str]:
    """Why a kernel can't run in `mode`, a line each. `config` is the text of its .config.

    Raises `BuildError` for a `version` that is none.
    """
    if not _numbers(version):
        raise BuildError(f"'{version}' is no version of a kernel")
    problems = []
    least = VERSIONS[mode].guest_kernel
    if is_older(version, least):
        problems.append(f"the kernel is {version}, and {mode} guests need {least}")
    problems += [
        f"the kernel was built without CONFIG_{symbol}"
        for symbol in GUEST_SYMBOLS[mode]
        if not re.search(rf"^CONFIG_{symbol}=y$", config, re.MULTILINE)
    ]
    return problems


def is_older(version: str, least: str) -> bool:
    """Whether `version` comes before `least` by its first two numbers, as what has none does."""
    return _numbers(version) < _numbers(least)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, match.groups())) if match else ()


# --- memory --------------------------------------------------------------------------------------

SLOT_BYTES = 2048
"""include/linux/swiotlb.h: IO_TLB_SIZE."""
_SLOT_STEP = 128
_DEFAULT_SLOTS = 32768
_BASES: Mapping[int, int] = MappingProxyType({1: 16, 2: 8, 3: 10})
SWIOTLB_PERCENT = 6
SWIOTLB_LEAST_MIB = 64
SWIOTLB_MOST_MIB = 1024
"""arch/x86/mm/mem_encrypt.c: mem_encrypt_setup_arch(), for guests with encrypted memory."""

WORKING_MIB = 64
"""For the agent, a container runtime, and the kernel's own allocations."""
FIRMWARE_MIB = 16
"""What firmware and the first MiB keep for themselves."""
WORKLOAD_MIB = 256
"""What the default gives to the workload above the minimum."""
LEAST_MIB = 128
"""Below this OVMF itself does not start."""
DEFAULT_LEAST_MIB = 512
_STEP_MIB = 32
_PAGE_ACCOUNT = 64
"""One byte in 64 goes to struct page: 64 bytes for each page of 4 KiB."""


@dataclass(frozen=True)
class Swiotlb:
    """How large the bounce buffers of a guest will be, whatever its memory.

    `fixed_bytes` is what the kernel makes of the command line; None when it is 6 % of memory within
    limits. A kernel since 6.0 takes a power of two of slots, and what is not one rounded up
    (kernel/dma/swiotlb.c: round_up_default_nslabs()).
    """

    fixed_bytes: int | None

    @classmethod
    def of_cmdline(cls, cmdline: str) -> "Swiotlb":
        """As ``swiotlb=`` says: a number of slots, then other things.

        Asking for the default is asking for nothing (kernel/dma/swiotlb.c:
        setup_io_tlb_npages(), swiotlb_adjust_size()).
        """
        fixed = None
        for name, value in parameters(cmdline):
            match = re.match(r"0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*)", value or "")
            if name != "swiotlb" or match is None:
                continue
            number, base = next((match[i], base) for i, base in _BASES.items() if match[i])
            slots = -(-int(number, base) // _SLOT_STEP) * _SLOT_STEP
            is_default = slots in (0, _DEFAULT_SLOTS)
            fixed = None if is_default else _power_of_two(slots) * SLOT_BYTES
        return cls(fixed)

    def mib(self, memory_mib: int) -> int:
        """Their size in a guest with encrypted memory and `memory_mib` of memory, rounded up."""
        if self.fixed_bytes is not None:
            return -(-self.fixed_bytes // MIB)
        share = -(-memory_mib * SWIOTLB_PERCENT // 100)
        return _power_of_two(min(max(share, SWIOTLB_LEAST_MIB), SWIOTLB_MOST_MIB))

    def most_mib(self, memory_mib: int) -> int:
        """A bound on `mib` that has no steps: no MiB of memory adds more than one to it."""
        if self.fixed_bytes is not None:
            return self.mib(memory_mib)
        share = -(-memory_mib * 2 * SWIOTLB_PERCENT // 100)
        return min(max(share, SWIOTLB_LEAST_MIB), SWIOTLB_MOST_MIB)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class Contents:
    """What a guest must hold to boot, in bytes."""

    kernel: int
    """While it unpacks itself: `init_size` of its header."""
    archive: int
    """The initramfs as the loader puts it into memory."""
    unpacked: int
    """The initramfs as it becomes the root."""


def minimum_mib(contents: Contents, swiotlb: Swiotlb) -> int:
    """The least memory that the guest boots with, in steps of 32 MiB.

    It is the least M for which M less bounce buffers, less 1/64 of M for page structures, holds the
    kernel, the archive, twice the unpacked archive (the root is a tmpfs, which takes half of the
    memory and no more), and room for firmware and agent. It never falls when a part grows, and all
    memory above it is enough too.
    """
    bytes_needed = contents.kernel + contents.archive + 2 * contents.unpacked
    needed = -(-bytes_needed // MIB) + WORKING_MIB + FIRMWARE_MIB
    memory = LEAST_MIB
    while (lack := needed - memory + swiotlb.most_mib(memory) + -(-memory // _PAGE_ACCOUNT)) > 0:
        memory += -(-lack // _STEP_MIB) * _STEP_MIB  # another MiB is never worth more than one
    return memory


@dataclass(frozen=True)
class DeviceNeed:
    """Bounce buffers without which a virtio device makes no progress: rows of `DEVICE_NEEDS`.

    `fixed_bytes` is taken for good once the driver has filled its queues; `per_vcpu_bytes` is one
    request of the largest size for each queue or task that waits for it.
    """

    fixed_bytes: int
    per_vcpu_bytes: int

    def bytes_for(self, vcpus: int) -> int:
        """What one such device needs in a guest of `vcpus`."""
        return self.fixed_bytes + vcpus * self.per_vcpu_bytes


_PAGE = 4096
DEVICE_NEEDS: Mapping[str, DeviceNeed] = MappingProxyType(
    {
        # drivers/char/virtio_console.c: fill_queue() puts a page into each place of a receive
        # queue; QEMU's hw/char/virtio-serial-bus.c: 128 places a port, 32 for control.
        "serial-bus": DeviceNeed(32 * _PAGE, 0),
        "serial-port": DeviceNeed(128 * _PAGE, _PAGE),
        # block/blk-settings.c: BLK_DEF_MAX_SECTORS_CAP, 1280 KiB a request; QEMU's
        # hw/block/virtio-blk.c: VIRTIO_BLK_AUTO_NUM_QUEUES, a queue a vCPU.
        "disk": DeviceNeed(0, 1280 << 10),
        # net/9p/trans_virtio.c: maxsize, 128 pages and some; a task waits for its one request.
        "share": DeviceNeed(0, 512 << 10),
        # drivers/scsi/virtio_scsi.c: VIRTIO_SCSI_EVENT_LEN, 8 events; requests and queues are those
        # of a disk (QEMU's hw/scsi/virtio-scsi.c), with a command and an answer.
        "scsi": DeviceNeed(8 * SLOT_BYTES, (1280 << 10) + 2 * SLOT_BYTES),
        # drivers/net/virtio_net.c: try_fill_recv(), at most a page for each of QEMU's 256 places of
        # a receive queue (mergeable buffers), cut from pieces of 32 KiB; 64 KiB a packet (GSO) with
        # its header. One of a pair of queues a device unless `queues=` says more.
        "net-queue-pair": DeviceNeed(256 * _PAGE + (32 << 10), (64 << 10) + SLOT_BYTES),
        # drivers/char/hw_random/virtio-rng.c: one request of 64 bytes.
        "rng": DeviceNeed(SLOT_BYTES, 0),
        # fs/fuse/fuse_i.h: FUSE_MAX_MAX_PAGES, 256 pages a request; fs/fuse/virtio_fs.c:
        # FUSE_HEADER_OVERHEAD, 4 pieces beside; a task waits for its one request.
        "virtiofs": DeviceNeed(0, 256 * _PAGE + 4 * SLOT_BYTES),
        # net/vmw_vsock/virtio_transport.c: virtio_vsock_rx_fill(), 128 places of 4 KiB, and 8
        # events; include/linux/virtio_vsock.h: 64 KiB a packet.
        "vsock": DeviceNeed(128 * _PAGE + 8 * SLOT_BYTES, 64 << 10),
    }
)
"""Device → what it needs of the bounce buffers."""

BOOT_DEVICES: Mapping[str, int] = MappingProxyType({"serial-bus": 1, "serial-port": 2})
"""What every guest has: the bus, the agent's port, and one that may be the console."""


def bounce_bytes(devices: Mapping[str, int], vcpus: int) -> int:
    """Bounce buffers for as many of each device as `devices` says, in bytes."""
    return sum(DEVICE_NEEDS[name].bytes_for(vcpus) * count for name, count in devices.items())


LOW_MIB = 2048
LOW_LIMIT_MIB = 2816
"""QEMU's hw/i386/pc_q35.c: with 2.75 GiB and more, all above 2 GiB is moved beyond 4 GiB."""


def launch_problems(
    minimum: int,
    swiotlb: Swiotlb,
    *,
    held_bytes: int,
    memory_mib: int,
    vcpus: int,
    devices: Mapping[str, int],
) -> list[str]:
    """Why a guest of this size can't come up or can't reach its devices, a line each.

    `minimum` is the manifest's: below it the initramfs does not unpack. `held_bytes` is what kernel
    and archive take before that. `devices` counts those of `DEVICE_NEEDS`. Bounce buffers lie in
    low memory (kernel/dma/swiotlb.c: swiotlb_init_remap() without SWIOTLB_ANY), which kernel,
    initramfs and firmware share with them. What does not fit the kernel halves until it does.
    """
    problems = []
    if memory_mib < minimum:
        problems.append(
            f"{memory_mib} MiB is too little: the initramfs unpacks and the agent runs from "
            f"{minimum} MiB on"
        )
    low = memory_mib if memory_mib < LOW_LIMIT_MIB else LOW_MIB
    pool = swiotlb.mib(memory_mib)
    others = -(-held_bytes // MIB) + WORKING_MIB + FIRMWARE_MIB
    if pool + others > low:
        problems.append(
            f"bounce buffers of {pool} MiB do not fit into {low} MiB of memory below 4 GiB, of "
            f"which kernel, initramfs and firmware take {others}"
        )
    needed = bounce_bytes(devices, vcpus)
    if needed > pool * MIB:
        listed = ", ".join(f"{count} {name}" for name, count in devices.items() if count)
        problems.append(
            f"bounce buffers of {pool} MiB are too few for {listed} with {vcpus} vCPUs, which "
            f"need {-(-needed // MIB)} MiB"
        )
    return problems


def default_mib(minimum: int) -> int:
    """The memory to take when nobody says: the minimum and room for a workload, at least 512."""
    return max(DEFAULT_LEAST_MIB, -(-(minimum + WORKLOAD_MIB) // 128) * 128)


def kernel_init_bytes(kernel: bytes, name: str = "vmlinuz") -> int:
    """`init_size` of a bzImage (Documentation/arch/x86/boot.rst, protocol 2.10).

    Raises `BuildError` when `kernel` is none.
    """
    if kernel[0x202:0x206] != b"HdrS" or len(kernel) < 0x264:
        raise BuildError(f"{name} is no bzImage", why="it lacks the header of the boot protocol")
    [protocol] = struct.unpack_from("<H", kernel, 0x206)
    if protocol < 0x20A:
        raise BuildError(f"{name} has boot protocol {protocol >> 8}.{protocol & 255}, not 2.10")
    [size] = struct.unpack_from("<I", kernel, 0x260)
    return int(size)
