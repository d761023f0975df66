# SPDX-License-Identifier: Apache-2.0
"""The ELF reader, against made files, the files of this machine, pyelftools, and damage."""

import struct
import sys
from pathlib import Path

import pytest
from elf_samples import LOADER, an_elf
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerNeedSection
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkit.errors import BuildError, SevkitError
from sevkit.rootfs.elf import X86_64, Elf, Platform, Symbol, is_elf

FULL = an_elf(
    needed=["liba.so.1", "libb.so.2"],
    soname="libfull.so.0",
    runpath="$ORIGIN/../lib:/opt/lib",
    interpreter=LOADER,
    dlopens=[{"soname": ["libz.so.2", "libz.so.1"], "feature": "z", "priority": "suggested"}],
    exports=["out@FULL_1", "plain"],
    imports=["in@A_2", "bare"],
    weak_imports=["perhaps@A_1"],
    defines=["FULL_1", "FULL_2"],
    wants={"liba.so.1": ["A_1", "A_2"], "libb.so.2": ["B_1"]},
)


def everything(data: bytes) -> list[object]:
    elf = Elf(data, "sample")
    return [
        *(elf.platform, elf.type, elf.interpreter, elf.needed, elf.soname, elf.rpath, elf.runpath),
        *(elf.dlopens, elf.needed_versions, elf.defined_versions, elf.exports, elf.imports),
    ]


def test_everything_a_loader_reads_is_read() -> None:
    elf = Elf(FULL, "full")
    assert elf.platform == X86_64
    assert elf.interpreter == LOADER
    assert elf.needed == ("liba.so.1", "libb.so.2")
    assert elf.soname == "libfull.so.0"
    assert elf.runpath == ("$ORIGIN/../lib", "/opt/lib")
    assert elf.rpath == ()
    assert {(v.library, v.version) for v in elf.needed_versions.values()} == {
        ("liba.so.1", "A_1"),
        ("liba.so.1", "A_2"),
        ("libb.so.2", "B_1"),
    }
    assert set(elf.defined_versions.values()) == {"FULL_1", "FULL_2"}
    assert elf.exports == {Symbol("out", "FULL_1"), Symbol("plain", None)}
    assert elf.imports == {Symbol("in", "A_2"), Symbol("bare", None)}
    [note] = elf.dlopens
    assert (note.sonames, note.priority) == (("libz.so.2", "libz.so.1"), "suggested")


def test_rpath_counts_only_without_runpath() -> None:
    assert Elf(an_elf(rpath="/a:/b"), "x").rpath == ("/a", "/b")
    assert Elf(an_elf(rpath="/a", runpath="/b"), "x").rpath == ()


def test_a_priority_that_is_not_stated_is_recommended() -> None:
    [note] = Elf(an_elf(dlopens=[{"soname": ["libz.so.1"]}]), "x").dlopens
    assert note.priority == "recommended"


@pytest.mark.parametrize(
    "note",
    [
        b"[{]",
        b"\xff\xfe",
        b"[1]",
        b'{"soname": ["a"]}',
        b'[{"soname": []}]',
        b'[{"soname": [1]}]',
        b'[{"soname": ["a"], "priority": "maybe"}]',
    ],
)
def test_a_dlopen_note_that_makes_no_sense_is_refused(note: bytes) -> None:
    elf = Elf(an_elf(dlopens=note), "/usr/bin/thing")
    with pytest.raises(BuildError, match="/usr/bin/thing is a malformed ELF file"):
        _ = elf.dlopens


def test_another_architecture_is_named() -> None:
    assert str(Elf(an_elf(machine=183), "x").platform) == "64-bit AArch64"
    small = bytearray(b"\x7fELF" + bytes([1, 1, 1]) + bytes(9))
    small += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0, 0, 0, 0, 52, 32, 0, 0, 0, 0)
    assert Elf(bytes(small), "x").platform == Platform(32, True, 3)


def test_a_file_that_is_cut_off_is_refused_and_the_whole_one_is_not() -> None:
    everything(FULL)
    for size in (0, 4, 15, 63, 100, len(FULL) // 2):
        with pytest.raises(BuildError, match="sample is a malformed ELF file"):
            everything(FULL[:size])


@settings(max_examples=600, deadline=2000)
@given(
    st.lists(st.tuples(st.integers(0, len(FULL) - 1), st.integers(0, 255)), min_size=1, max_size=12)
)
def test_damage_gives_an_answer_or_one_error(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(FULL)
    for at, value in changes:
        damaged[at] = value
    try:
        everything(bytes(damaged))
    except SevkitError as error:
        assert "sample" in error.what  # noqa: PT017 - most damage gives an answer


@settings(max_examples=200, deadline=2000)
@given(st.binary(max_size=400))
def test_noise_after_the_magic_gives_an_answer_or_one_error(noise: bytes) -> None:
    try:
        everything(b"\x7fELF\x02\x01\x01\x00" + noise)
    except SevkitError as error:
        assert "sample" in error.what  # noqa: PT017 - most damage gives an answer


def files_of_this_machine() -> list[Path]:
    places = [Path(sys.executable).resolve(), Path("/usr/bin/env"), Path("/bin/sh").resolve()]
    found = Path("/usr/lib").glob("*-linux-gnu/lib[cmz]*.so.[0-9]*")
    places += sorted({path.resolve() for path in found})
    return [path for path in places if path.is_file() and is_elf(path.read_bytes()[:4])][:8]


@pytest.mark.parametrize("path", files_of_this_machine(), ids=lambda path: path.name)
def test_pyelftools_reads_the_same(path: Path) -> None:
    ours = Elf(path.read_bytes(), str(path))
    with path.open("rb") as file:
        theirs = ELFFile(file)
        dynamic = theirs.get_section_by_name(".dynamic")
        assert isinstance(dynamic, DynamicSection)
        tags = list(dynamic.iter_tags())
        assert ours.needed == tuple(tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED")
        assert [ours.soname] == ([t.soname for t in tags if t.entry.d_tag == "DT_SONAME"] or [None])
        table = theirs.get_section_by_name(".dynsym")
        exported, needed, defined = set(), set(), set()
        for symbol in table.iter_symbols():
            if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] != "STB_LOCAL":
                exported.add(symbol.name)
        for section in theirs.iter_sections():
            if isinstance(section, GNUVerNeedSection):
                for library, versions in section.iter_versions():
                    needed |= {(library.name, version.name) for version in versions}
            if isinstance(section, GNUVerDefSection):
                for version, names in section.iter_versions():
                    if not version["vd_flags"] & 1:
                        defined.add(next(iter(names)).name)
    assert {symbol.name for symbol in ours.exports} == exported
    assert {(v.library, v.version) for v in ours.needed_versions.values()} == needed
    assert set(ours.defined_versions.values()) == defined
