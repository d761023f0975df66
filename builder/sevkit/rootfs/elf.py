# SPDX-License-Identifier: Apache-2.0
"""What a dynamic loader reads of one ELF file: headers, dynamic section, versions, symbols.

Follows the System V gABI ("Program Loading and Dynamic Linking"), the GNU symbol versioning of the
LSB, and the dlopen metadata note of https://systemd.io/ELF_DLOPEN_METADATA. Only what a loader
looks at is read, so a file without section headers is as good as any. Whatever the bytes, the
answer is a description or one error. It never looks for other files.
"""

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from sevkit.errors import BuildError

MAGIC = b"\x7fELF"

_ET_EXEC, _ET_DYN = 2, 3
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 1, 2, 3, 4
_DT_NEEDED, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ = 1, 4, 5, 6, 7, 8
_DT_STRSZ, _DT_SONAME, _DT_RPATH, _DT_REL, _DT_RELSZ = 10, 14, 15, 17, 18
_DT_PLTRELSZ, _DT_PLTREL, _DT_JMPREL, _DT_RUNPATH = 2, 20, 23, 29
_DT_GNU_HASH, _DT_VERSYM, _DT_VERDEF, _DT_VERNEED = 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFE
_NT_DLOPEN = 0x407C0C0A
_STB_LOCAL, _STB_WEAK = 0, 2
_VER_FLG_BASE, _VER_FLG_WEAK = 1, 2
_LONGEST_STRING = 1 << 16
_MOST_VERSIONS = 1 << 15

_MACHINES: Mapping[int, str] = {
    3: "x86",
    21: "64-bit PowerPC",
    22: "S/390",
    40: "ARM",
    62: "x86-64",
    183: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}


class Platform(NamedTuple):
    """What must be equal for one ELF file to be loaded into the process of another."""

    bits: int
    little_endian: bool
    machine: int

    def __str__(self) -> str:
        name = _MACHINES.get(self.machine, f"machine {self.machine}")
        return f"{self.bits}-bit {name}{'' if self.little_endian else ', big-endian'}"


X86_64 = Platform(64, True, 62)


@dataclass(frozen=True)
class Dlopen:
    """Libraries that a file opens while it runs: the first of `sonames` that there is."""

    sonames: tuple[str, ...]
    priority: str
    """``required``, ``recommended`` or ``suggested``."""
    feature: str


class NeededVersion(NamedTuple):
    """A symbol version that a file wants of one of the libraries it needs."""

    library: str
    version: str
    weak: bool


class Symbol(NamedTuple):
    """A dynamic symbol; the version is None where it has none."""

    name: str
    version: str | None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


class _Segment(NamedTuple):
    kind: int
    offset: int
    address: int
    size: int


def is_elf(data: bytes | memoryview) -> bool:
    """Whether `data` begins as an ELF file does."""
    return bytes(data[:4]) == MAGIC


class Elf:
    """One ELF file. Raises `BuildError`, naming the file, for bytes that make no sense.

    The headers and the dynamic section are read at once, versions and symbols when asked for.
    """

    def __init__(self, data: bytes | memoryview, name: str):
        self.name = name
        self._data = memoryview(data)
        with self._reading():
            self._read_header()
            self._read_dynamic()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (struct.error, ValueError, KeyError, IndexError, RecursionError) as error:
            raise BuildError(
                f"{self.name} is a malformed ELF file", why=str(error).strip("'")
            ) from error

    # --- headers -----------------------------------------------------------------------------

    def _read_header(self) -> None:
        ident = bytes(self._data[:16])
        if (
            len(ident) < 16
            or ident[:4] != MAGIC
            or ident[4] not in (1, 2)
            or ident[5] not in (1, 2)
        ):
            raise ValueError("it has no ELF identification")
        self._wide = ident[4] == 2
        self._order = "<" if ident[5] == 1 else ">"
        self.os_abi = ident[7]
        self.type, machine, _, _, table, _, _, _, entry_bytes, count, *_ = self._unpack(
            "HHIQQQIHHHHHH" if self._wide else "HHIIIIIHHHHHH", 16
        )
        self.platform = Platform(64 if self._wide else 32, ident[5] == 1, machine)
        layout = struct.Struct(self._order + ("IIQQQQQQ" if self._wide else "IIIIIIII"))
        if count and entry_bytes != layout.size:
            raise ValueError(f"its program headers are {entry_bytes} bytes long")
        self._segments = []
        for index in range(count):
            fields = layout.unpack(self._bytes(table + index * layout.size, layout.size))
            if self._wide:
                kind, _, offset, address, _, size, _, _ = fields
            else:
                kind, offset, address, _, size, _, _, _ = fields
            self._segments.append(_Segment(kind, offset, address, size))
        self.interpreter = self._interpreter()

    def _interpreter(self) -> str | None:
        for segment in self._segments:
            if segment.kind == _PT_INTERP:
                return _text(self._bytes(segment.offset, segment.size).partition(b"\0")[0])
        return None

    @property
    def is_program_or_library(self) -> bool:
        """Whether a kernel or a loader would map it: not an object file, not a core."""
        return self.type in (_ET_EXEC, _ET_DYN)

    # --- the dynamic section -----------------------------------------------------------------

    def _read_dynamic(self) -> None:
        entries: list[tuple[int, int]] = []
        for segment in self._segments:
            if segment.kind == _PT_DYNAMIC:
                layout = struct.Struct(self._order + ("qQ" if self._wide else "iI"))
                raw = self._bytes(segment.offset, segment.size - segment.size % layout.size)
                for tag, value in layout.iter_unpack(raw):
                    if tag == 0:
                        break
                    entries.append((tag, value))
                break
        self._tags = dict(reversed(entries))  # the first of a kind counts
        self._strings = b""
        if _DT_STRTAB in self._tags:
            self._strings = self._bytes(
                self._offset(self._tags[_DT_STRTAB]), self._tags.get(_DT_STRSZ, 0)
            )
        needed = [self._string(value) for tag, value in entries if tag == _DT_NEEDED]
        self.needed = tuple(dict.fromkeys(needed))
        self.soname = self._string(self._tags[_DT_SONAME]) if _DT_SONAME in self._tags else None
        self.runpath = self._search_path(_DT_RUNPATH)
        self.rpath = () if _DT_RUNPATH in self._tags else self._search_path(_DT_RPATH)

    def _search_path(self, tag: int) -> tuple[str, ...]:
        if tag not in self._tags:
            return ()
        return tuple(part for part in self._string(self._tags[tag]).split(":") if part)

    @cached_property
    def dlopens(self) -> Sequence[Dlopen]:
        """What the file's dlopen notes announce. A note that is not what the format says is an
        error, because the library it stands for would be missing in the guest."""
        found: list[Dlopen] = []
        with self._reading():
            for segment in self._segments:
                if segment.kind == _PT_NOTE:
                    for row in self._dlopen_rows(self._bytes(segment.offset, segment.size)):
                        found.append(_dlopen(row))
        return found

    def _dlopen_rows(self, notes: bytes) -> Iterator[object]:
        at = 0
        while at + 12 <= len(notes):
            name_bytes, text_bytes, kind = struct.unpack_from(self._order + "III", notes, at)
            text_at = at + 12 + name_bytes + -name_bytes % 4
            if kind == _NT_DLOPEN and notes[at + 12 : at + 12 + name_bytes] == b"FDO\0":
                text = notes[text_at : text_at + text_bytes].rstrip(b"\0")
                rows = json.loads(text)
                if not isinstance(rows, list):
                    raise ValueError("its dlopen note is not a JSON array")
                yield from rows
            at = text_at + text_bytes + -text_bytes % 4

    # --- versions ----------------------------------------------------------------------------

    @cached_property
    def needed_versions(self) -> Mapping[int, NeededVersion]:
        """Version index → the version wanted, of which library (DT_VERNEED)."""
        with self._reading():
            found: dict[int, NeededVersion] = {}
            steps = 0
            for at, (_, count, library, first, _) in self._records(_DT_VERNEED, "HHIII", 4):
                aux_at = at + first
                for _ in range(count):
                    _, flags, index, name, following = self._unpack("IHHII", aux_at)
                    weak = bool(flags & _VER_FLG_WEAK)
                    found[index & 0x7FFF] = NeededVersion(
                        self._string(library), self._string(name), weak
                    )
                    steps += 1
                    if steps > _MOST_VERSIONS:
                        raise ValueError("it needs too many versions")
                    if not following:
                        break
                    aux_at += following
            return found

    @cached_property
    def defined_versions(self) -> Mapping[int, str]:
        """Version index → the version's name (DT_VERDEF), without the file's own base version."""
        with self._reading():
            found: dict[int, str] = {}
            for at, (_, flags, index, _, _, first, _) in self._records(_DT_VERDEF, "HHHHIII", 6):
                name, _ = self._unpack("II", at + first)
                if not flags & _VER_FLG_BASE:
                    found[index & 0x7FFF] = self._string(name)
            return found

    def _records(self, tag: int, layout: str, link: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """The records of a chain and where each is; field `link` is the distance to the next."""
        if tag not in self._tags:
            return
        at = self._offset(self._tags[tag])
        for _ in range(_MOST_VERSIONS):
            fields = self._unpack(layout, at)
            yield at, fields
            if not fields[link]:
                return
            at += fields[link]
        raise ValueError("its version records have no end")

    # --- symbols -----------------------------------------------------------------------------

    @cached_property
    def exports(self) -> frozenset[Symbol]:
        """The dynamic symbols that others can bind to."""
        with self._reading():
            count = self._symbol_count()
            if count == 0:
                return frozenset()
            layout = struct.Struct(self._order + ("IBBHQQ" if self._wide else "IIIBBH"))
            table = self._bytes(self._offset(self._tags[_DT_SYMTAB]), count * layout.size)
            name_at, info_at, section_at = (0, 1, 3) if self._wide else (0, 3, 5)
            versions = self._symbol_versions(count)
            return frozenset(
                Symbol(self._string(row[name_at]), version)
                for row, version in zip(layout.iter_unpack(table), versions, strict=True)
                if row[section_at] and row[info_at] >> 4 != _STB_LOCAL
            )

    @cached_property
    def imports(self) -> frozenset[Symbol]:
        """The symbols that must be found elsewhere: undefined, not weak, used by a relocation."""
        with self._reading():
            found = set()
            for index in set(self._relocated_symbols()):
                symbol, defined, binding = self._symbol(index)
                if not defined and binding not in (_STB_LOCAL, _STB_WEAK) and symbol.name:
                    found.add(symbol)
            return frozenset(found)

    def _symbol(self, index: int) -> tuple[Symbol, bool, int]:
        table = self._offset(self._tags[_DT_SYMTAB])
        if self._wide:
            name, info, _, section = self._unpack("IBBH", table + index * 24)
        else:
            name, _, _, info, _, section = self._unpack("IIIBBH", table + index * 16)
        return Symbol(self._string(name), self._version_of(index)), section != 0, info >> 4

    def _symbol_versions(self, count: int) -> Sequence[str | None]:
        if _DT_VERSYM not in self._tags:
            return [None] * count
        names = {number: needed.version for number, needed in self.needed_versions.items()}
        names = {**self.defined_versions, **names}
        numbers = self._unpack(f"{count}H", self._offset(self._tags[_DT_VERSYM]))
        return [names.get(number & 0x7FFF) for number in numbers]

    def _version_of(self, index: int) -> str | None:
        if _DT_VERSYM not in self._tags:
            return None
        [number] = self._unpack("H", self._offset(self._tags[_DT_VERSYM]) + 2 * index)
        number &= 0x7FFF
        if number in self.needed_versions:
            return self.needed_versions[number].version
        return self.defined_versions.get(number)

    def _symbol_count(self) -> int:
        """How many dynamic symbols there are. Only the hash tables tell."""
        if _DT_HASH in self._tags:
            _, count = self._unpack("II", self._offset(self._tags[_DT_HASH]))
            return int(count)
        if _DT_GNU_HASH not in self._tags:
            return 0
        table = self._offset(self._tags[_DT_GNU_HASH])
        bucket_count, first, bloom_words, _ = self._unpack("IIII", table)
        buckets_at = table + 16 + bloom_words * (8 if self._wide else 4)
        word = struct.Struct(self._order + "I")
        buckets = word.iter_unpack(self._bytes(buckets_at, 4 * bucket_count))
        last = max((bucket for [bucket] in buckets), default=0)
        if last < first:
            return int(first)
        chain_at = buckets_at + 4 * bucket_count
        while not self._unpack("I", chain_at + 4 * (last - first))[0] & 1:
            last += 1
        return last + 1

    def _relocated_symbols(self) -> Iterator[int]:
        tags, wide = self._tags, self._wide
        tables = [
            (_DT_RELA, tags.get(_DT_RELASZ, 0), True),
            (_DT_REL, tags.get(_DT_RELSZ, 0), False),
            (_DT_JMPREL, tags.get(_DT_PLTRELSZ, 0), tags.get(_DT_PLTREL) == _DT_RELA),
        ]
        for tag, size, has_addend in tables:
            if tag in tags and size:
                fields = "QQq" if wide else "IIi"
                layout = struct.Struct(self._order + (fields if has_addend else fields[:2]))
                raw = self._bytes(self._offset(tags[tag]), size - size % layout.size)
                shift = 32 if wide else 8
                yield from (row[1] >> shift for row in layout.iter_unpack(raw) if row[1] >> shift)

    # --- bytes -------------------------------------------------------------------------------

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset + size > len(self._data):
            raise ValueError(f"it ends before byte {offset + size}, which its headers name")
        return bytes(self._data[offset : offset + size])

    def _unpack(self, layout: str, offset: int) -> tuple[int, ...]:
        try:
            return struct.unpack_from(self._order + layout, self._data, offset)
        except (struct.error, OverflowError):  # an offset that is no C integer
            raise ValueError(f"it ends before byte {offset}, which its headers name") from None

    def _offset(self, address: int) -> int:
        """Where in the file the byte for a memory address is."""
        for segment in self._segments:
            if segment.kind == _PT_LOAD and 0 <= address - segment.address < segment.size:
                return segment.offset + address - segment.address
        raise ValueError(f"address {address:#x} is in none of its segments")

    def _string(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset, offset + _LONGEST_STRING)
        if end < 0:
            raise ValueError(f"string {offset} is not in its string table")
        return _text(self._strings[offset:end])


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _dlopen(row: object) -> Dlopen:
    sonames = row.get("soname") if isinstance(row, Mapping) else None
    if not isinstance(row, Mapping) or not isinstance(sonames, list) or not sonames:
        raise ValueError("its dlopen note names no soname")
    if not all(isinstance(soname, str) and soname for soname in sonames):
        raise ValueError("its dlopen note has a soname that is not text")
    priority = row.get("priority", "recommended")
    if priority not in ("required", "recommended", "suggested"):
        raise ValueError(f"its dlopen note has the priority {priority!r}")
    return Dlopen(tuple(sonames), priority, str(row.get("feature", "")))
