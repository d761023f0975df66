# SPDX-License-Identifier: Apache-2.0
"""The CPUID instruction, asked directly: needs no privilege and no kernel module.

Never decides anything; `launch.py` does.
"""

import ctypes
import mmap
import platform

from sevkit.errors import HostError

_CODE = bytes.fromhex(
    "53"  # push %rbx
    "89f8"  # mov %edi, %eax
    "89f1"  # mov %esi, %ecx
    "4989d0"  # mov %rdx, %r8
    "0fa2"  # cpuid
    "418900"  # mov %eax, (%r8)
    "41895804"  # mov %ebx, 4(%r8)
    "41894808"  # mov %ecx, 8(%r8)
    "4189500c"  # mov %edx, 12(%r8)
    "5b"  # pop %rbx
    "c3"  # ret
)


def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX of a CPUID leaf (AMD APM volume 3, appendix E).

    Raises `HostError` on another architecture, or where no code may be made at run time.
    """
    if platform.machine() != "x86_64":
        raise HostError(f"this host is {platform.machine()}, not x86_64")
    try:
        page = mmap.mmap(-1, len(_CODE), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError as error:
        raise HostError("the CPU can't be asked what it has", why=str(error)) from error
    page.write(_CODE)
    registers = (ctypes.c_uint32 * 4)()
    start = ctypes.c_char.from_buffer(page)
    signature = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
    signature(ctypes.addressof(start))(leaf, subleaf, ctypes.addressof(registers))
    del start
    page.close()
    return registers[0], registers[1], registers[2], registers[3]
