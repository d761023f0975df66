# SPDX-License-Identifier: Apache-2.0
"""What is changed before a boot that firmware must refuse, and what makes a proof."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from sevkit.errors import ImageError
from sevkit.guest.cases import Seen, cases_of
from sevkit.guest.prove import Proof
from sevkit.guest.qemu import GuestSpec

NAME_AT = 0x300


def a_spec(folder: Path, **changes: object) -> GuestSpec:
    kernel = bytearray(2048)
    kernel[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", kernel, 0x20E, NAME_AT - 0x200)
    kernel[NAME_AT : NAME_AT + 5] = b"6.12\0"
    (folder / "kernel").write_bytes(kernel)
    (folder / "archive").write_bytes(b"an archive")
    spec = GuestSpec(
        kernel=folder / "kernel",
        cmdline="console=ttyS0 quiet",
        initramfs=folder / "archive",
        hashes_at=0x810C00,
        hashes=bytes(range(176)),
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def bits_that_differ(old: bytes, new: bytes) -> int:
    assert len(old) == len(new)
    return sum((a ^ b).bit_count() for a, b in zip(old, new, strict=True))


def test_each_case_changes_one_thing_and_leaves_the_image_alone(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    spec = a_spec(tmp_path)
    before = {path: path.read_bytes() for path in (spec.kernel, tmp_path / "archive")}
    cases = {case.name: case for case in cases_of(spec, scratch)}
    assert list(cases) == ["good", "kernel", "initrd", "cmdline", "no-table", "entry-length"]
    assert cases["good"].spec == spec
    must = [case.expected for case in cases.values()]
    assert must == [("booted",)] + [("refused",)] * 3 + [("refused", "passed-over")] * 2

    kernel = cases["kernel"].spec
    assert bits_that_differ(before[spec.kernel], kernel.kernel.read_bytes()) == 1
    assert kernel.kernel.read_bytes()[NAME_AT] == ord("6") ^ 1
    assert replace(kernel, kernel=spec.kernel) == spec

    initrd = cases["initrd"].spec
    assert initrd.initramfs is not None
    assert bits_that_differ(b"an archive", initrd.initramfs.read_bytes()) == 1
    assert replace(initrd, initramfs=spec.initramfs) == spec

    cmdline = cases["cmdline"].spec
    assert bits_that_differ(spec.cmdline.encode(), cmdline.cmdline.encode()) == 1
    assert replace(cmdline, cmdline=spec.cmdline) == spec

    assert cases["no-table"].spec == replace(spec, hashes_at=None, hashes=b"")
    entry = cases["entry-length"].spec
    assert [at for at in range(176) if entry.hashes[at] != spec.hashes[at]] == [34]
    assert {path: path.read_bytes() for path in before} == before


def test_an_image_without_an_initramfs_of_its_own_has_no_such_case(tmp_path: Path) -> None:
    names = [case.name for case in cases_of(a_spec(tmp_path, initramfs=None), tmp_path)]
    assert names == ["good", "kernel", "cmdline", "no-table", "entry-length"]


def test_an_empty_command_line_is_changed_too(tmp_path: Path) -> None:
    cases = {case.name: case for case in cases_of(a_spec(tmp_path, cmdline=""), tmp_path)}
    assert cases["cmdline"].spec.cmdline == "x"


def test_what_is_no_kernel_or_holds_nothing_is_an_error_that_names_it(tmp_path: Path) -> None:
    spec = a_spec(tmp_path)
    assert len(list(cases_of(spec, tmp_path))) == 6
    for name, content, why in (
        ("kernel", b"short", "kernel is no kernel"),
        ("kernel", bytes(4096), "kernel is no kernel"),
        ("archive", b"", "archive is empty"),
    ):
        spec = a_spec(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=why):
            list(cases_of(spec, tmp_path))


GOOD = Seen("good", "", ("booted",), "booted", "the agent greets", 1.0)
REFUSED = Seen("kernel", "one bit", ("refused",), "refused", "the CPU loops", 2.0)


@pytest.mark.parametrize(
    ("cases", "proven"),
    [
        ((GOOD, REFUSED), True),
        ((GOOD, replace(REFUSED, seen="booted")), False),
        ((GOOD, replace(REFUSED, seen="passed-over")), False),
        ((GOOD, replace(REFUSED, seen="unclear")), False),
        ((replace(GOOD, seen="refused"), REFUSED), False),
    ],
)
def test_a_proof_stands_only_when_every_case_went_as_it_must(
    cases: tuple[Seen, ...], proven: bool
) -> None:
    proof = Proof("image", "f", "k", None, 'quote " and \\ back', "10.0.0", cases)
    assert proof.is_proven is proven
    text = proof.text()
    record = json.loads(text)
    assert record["proven"] is proven
    assert record["cmdline"] == proof.cmdline
    assert [row["case"] for row in record["cases"]] == ["good", "kernel"]
    assert sum('"case"' in line for line in text.splitlines()) == len(cases)
