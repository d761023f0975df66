# SPDX-License-Identifier: Apache-2.0
"""Tries firmware alone, with a kernel of our own that says one thing: that it was started.

It is shaped as a Linux kernel with an EFI stub (Documentation/arch/x86/boot.rst; PE/COFF
specification, revision 11), which is what QEMU and EDK2 look at, and holds seven bytes of code. So
firmware can be tried before there is an image, in a tenth of the time that one takes to boot.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sevkit.errors import ImageError
from sevkit.firmware.hash_table import table_without_sev
from sevkit.firmware.loaded import LoadedModules
from sevkit.firmware.ovmf import parse
from sevkit.guest.cases import Case, Patience, Seen, boot_all, cases_of, watch
from sevkit.guest.launch import Launch, Qemu
from sevkit.guest.machine import Machine
from sevkit.guest.observe import Monitor
from sevkit.guest.qemu import GuestSpec, qemu_argv

_CODE = bytes.fromhex("b02a e6f4 f4 ebfd")
"""mov $0x2a, %al; out %al, $0xf4; hlt; jmp to the hlt."""
_STARTED_STATUS = 0x2A * 2 + 1
"""Of QEMU: isa-debug-exit ends it with twice the value and one."""
_EXIT = ("-device", "isa-debug-exit,iobase=0xf4,iosize=1")

_SETUP_BYTES, _CODE_BYTES = 0x400, 0x200
_PE_AT, _OPTIONAL_BYTES = 0x40, 112 + 6 * 8
_PAGE_BYTES = 0x1000
_EFI_APPLICATION = 10
_NAME_AT = 0x300
_INITRD = b"an initrd that nobody unpacks"
_CMDLINE = "trial"
_MEMORY_MIB = 256


def trial_kernel() -> bytes:
    """The kernel: a setup of two sectors that ends in a page of code."""
    kernel = bytearray(_SETUP_BYTES + _CODE_BYTES)
    kernel[:2] = b"MZ"
    struct.pack_into("<I", kernel, 0x3C, _PE_AT)
    kernel[_PE_AT : _PE_AT + 4] = b"PE\0\0"
    # Machine, sections, no time, no symbols, size of the optional header, executable
    struct.pack_into("<HHIIIHH", kernel, _PE_AT + 4, 0x8664, 1, 0, 0, 0, _OPTIONAL_BYTES, 0x0206)
    optional = _PE_AT + 24
    # PE32+, linker, code size, data sizes, entry point, base of code
    struct.pack_into(
        "<HBBIIIII", kernel, optional, 0x20B, 0, 0, _CODE_BYTES, 0, 0, _PAGE_BYTES, _PAGE_BYTES
    )
    # Base address, alignments in memory and file
    struct.pack_into("<QII", kernel, optional + 24, 0, _PAGE_BYTES, _CODE_BYTES)
    # Size in memory, of headers, checksum, subsystem
    struct.pack_into(
        "<IIIH", kernel, optional + 56, 2 * _PAGE_BYTES, _SETUP_BYTES, 0, _EFI_APPLICATION
    )
    struct.pack_into("<I", kernel, optional + 108, 6)  # directories, all of them empty
    # Name, size and place in memory, size and place in the file, code that is read and run
    struct.pack_into(
        *("<8sIIIIIIHHI", kernel, optional + _OPTIONAL_BYTES),
        *(b".text", _CODE_BYTES, _PAGE_BYTES, _CODE_BYTES, _SETUP_BYTES, 0, 0, 0, 0, 0x60000020),
    )
    kernel[0x1F1] = _SETUP_BYTES // 512 - 1  # setup_sects
    struct.pack_into("<H", kernel, 0x1FE, 0xAA55)  # boot_flag
    kernel[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", kernel, 0x206, 0x20C)  # version of the protocol
    struct.pack_into("<H", kernel, 0x20E, _NAME_AT - 0x200)  # kernel_version
    kernel[_NAME_AT : _NAME_AT + 5] = b"trial"
    kernel[0x211] = 1  # loadflags: LOADED_HIGH
    struct.pack_into("<I", kernel, 0x214, 0x100000)  # code32_start
    struct.pack_into("<I", kernel, 0x22C, 0x7FFFFFFF)  # initrd_addr_max
    struct.pack_into("<I", kernel, 0x238, 2047)  # cmdline_size
    kernel[_SETUP_BYTES : _SETUP_BYTES + len(_CODE)] = _CODE
    return bytes(kernel)


def try_firmware(
    firmware: Path,
    qemu: Qemu,
    scratch: Path,
    *,
    name: str,
    confined: Callable[[Sequence[str]], Sequence[str]] = lambda argv: argv,
    env: Mapping[str, str] | None = None,
    check: Callable[[], None] = lambda: None,
) -> tuple[Seen, ...]:
    """What the firmware makes of the trial kernel, whole and changed; errors call it `name`.

    `scratch` is an empty folder. QEMU runs under TCG, in what `confined` makes of its command line.
    `check` is called all the time and may raise. Raises `ImageError` for what is no OVMF image or
    has no place for hashes.
    """
    data = firmware.read_bytes()
    facts = parse(data, name)
    if facts.kernel_hashes is None:
        raise ImageError(f"{name} has no place for hashes: there is nothing to try")
    modules = LoadedModules.of_image(data, name)
    kernel, initrd = trial_kernel(), _INITRD
    (scratch / "kernel").write_bytes(kernel)
    (scratch / "initrd").write_bytes(initrd)
    spec = GuestSpec(
        kernel=scratch / "kernel",
        initramfs=scratch / "initrd",
        cmdline=_CMDLINE,
        firmware=firmware,
        firmware_is_flash="bios" not in facts.loads_as,
        memory_mib=_MEMORY_MIB,
        hashes_at=facts.kernel_hashes.base,
        hashes=table_without_sev(
            kernel, initrd, _CMDLINE, memory_mib=_MEMORY_MIB, qemu_version=qemu.version
        ),
    )

    def boot(case: Case, patience: Patience) -> Seen:
        def machine(monitor: Monitor) -> Machine:
            return Machine(
                lambda _, console: confined(
                    qemu_argv(
                        qemu,
                        Launch("tcg"),
                        case.spec,
                        agent_fd=None,
                        console_fd=console,
                        extra_args=[*_EXIT, *monitor.arguments()],
                    )
                ),
                on_agent=lambda _: None,
                on_console=lambda _: None,
                inherited=[monitor.descriptor],
                env=env,
            )

        return watch(case, machine, _sign, modules, patience, check)

    return boot_all(list(cases_of(spec, scratch)), boot)


def _sign(machine: Machine) -> str:
    return "it runs" if machine.exit_status == _STARTED_STATUS else ""
