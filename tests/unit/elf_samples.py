# SPDX-License-Identifier: Apache-2.0
"""ELF files made field by field, for tests that need one that no compiler here would make."""

import json
import struct
from collections.abc import Mapping, Sequence

LOADER = "/lib64/ld-linux-x86-64.so.2"


def an_elf(  # noqa: PLR0915 - a file is a list of fields
    *,
    needed: Sequence[str] = (),
    soname: str | None = None,
    rpath: str | None = None,
    runpath: str | None = None,
    interpreter: str | None = None,
    dlopens: Sequence[object] | bytes = (),
    exports: Sequence[str] = (),
    imports: Sequence[str] = (),
    weak_imports: Sequence[str] = (),
    defines: Sequence[str] = (),
    wants: Mapping[str, Sequence[str]] | None = None,
    machine: int = 62,
    os_abi: int = 0,
    kind: int = 3,
    extra: bytes = b"",
) -> bytes:
    """A 64-bit little-endian file with one segment mapped at address 0.

    Symbols are written ``name`` or ``name@version``; the versions of exports come from `defines`,
    those of imports from `wants` (library → versions).
    """
    strings = bytearray(b"\0")
    seen: dict[str, int] = {"": 0}

    def string(text: str) -> int:
        if text not in seen:
            seen[text] = len(strings)
            strings.extend(text.encode() + b"\0")
        return seen[text]

    wants = wants or {}
    indices = {version: number for number, version in enumerate(defines, start=2)}
    wanted = [(library, version) for library, names in wants.items() for version in names]
    indices |= {v: number for number, (_, v) in enumerate(wanted, start=2 + len(defines))}
    symbols, versyms, relocations = bytearray(24), bytearray(2), bytearray()
    rows = [(name, True, 1) for name in exports] + [(name, False, 1) for name in imports]
    rows += [(name, False, 2) for name in weak_imports]
    for number, (name, defined, binding) in enumerate(rows, start=1):
        plain, _, version = name.partition("@")
        symbols += struct.pack("<IBBHQQ", string(plain), binding << 4, 0, int(defined), 0, 0)
        versyms += struct.pack("<H", indices[version] if version else 1)
        if not defined:
            relocations += struct.pack("<QQq", 0, number << 32 | 6, 0)
    verdef = b"".join(
        struct.pack(
            "<HHHHIII", 1, 0, indices[version], 1, 0, 20, 28 if version != defines[-1] else 0
        )
        + struct.pack("<II", string(version), 0)
        for version in defines
    )
    verneed = bytearray()
    for number, (library, names) in enumerate(wants.items()):
        size = 16 + 16 * len(names)
        last = number == len(wants) - 1
        verneed += struct.pack("<HHIII", 1, len(names), string(library), 16, 0 if last else size)
        for at, version in enumerate(names):
            following = 0 if at == len(names) - 1 else 16
            verneed += struct.pack("<IHHII", 0, 0, indices[version], string(version), following)
    hashes = struct.pack("<II", 1, len(rows) + 1) + bytes(4 * (len(rows) + 2))

    entries: list[tuple[int, int | str]] = [(1, string(name)) for name in needed]
    for tag, text in ((14, soname), (15, rpath), (29, runpath)):
        if text is not None:
            entries.append((tag, string(text)))
    entries += [(5, "strings"), (10, len(strings)), (6, "symbols"), (4, "hashes")]
    entries += [(7, "relocations"), (8, len(relocations))]
    entries += [(0x6FFFFFF0, "versyms")]
    entries += [(0x6FFFFFFC, "verdef")] if defines else []
    entries += [(0x6FFFFFFE, "verneed")] if wants else []
    entries.append((0, 0))

    note = b""
    if dlopens:
        text = dlopens if isinstance(dlopens, bytes) else json.dumps(dlopens).encode() + b"\0"
        note = struct.pack("<III", 4, len(text), 0x407C0C0A) + b"FDO\0" + text
        note += bytes(-len(note) % 4)
    parts = {
        "strings": bytes(strings),
        "symbols": bytes(symbols),
        "hashes": hashes,
        "relocations": bytes(relocations),
        "versyms": bytes(versyms),
        "verdef": verdef,
        "verneed": bytes(verneed),
        "interpreter": (interpreter or "").encode() + b"\0",
        "note": note,
        "extra": extra,
    }
    count = 2 + (interpreter is not None) + bool(note)
    at = 64 + 56 * count + 16 * len(entries)
    places: dict[str, int] = {}
    body = bytearray()
    for name, data in parts.items():
        body += bytes(-(at + len(body)) % 8)
        places[name] = at + len(body)
        body += data
    dynamic = b"".join(
        struct.pack("<qQ", tag, places[value] if isinstance(value, str) else value)
        for tag, value in entries
    )
    total = at + len(body)
    segments = [(1, 0, total), (2, 64 + 56 * count, len(dynamic))]
    if interpreter is not None:
        segments.append((3, places["interpreter"], len(parts["interpreter"])))
    if note:
        segments.append((4, places["note"], len(note)))
    headers = b"".join(
        struct.pack("<IIQQQQQQ", segment, 4, offset, offset, offset, size, size, 8)
        for segment, offset, size in segments
    )
    ident = b"\x7fELF" + bytes([2, 1, 1, os_abi]) + bytes(8)
    header = struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return ident + header + headers + dynamic + bytes(body)


def a_loader() -> bytes:
    """What stands for ld.so: it has the folders that it searches in it, as glibc's has."""
    dirs = b"/lib/x86_64-linux-gnu/\0/usr/lib/x86_64-linux-gnu/\0/lib/\0/usr/lib/\0"
    return an_elf(soname="ld-linux-x86-64.so.2", extra=b"\0" + dirs)
