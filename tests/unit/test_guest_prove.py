# SPDX-License-Identifier: Apache-2.0
"""What is changed before a boot that firmware must refuse, and what makes a proof."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import image_samples
import pytest
from guest_double import write_double
from test_firmware_modules import image as firmware_image
from test_firmware_modules import module

from sevkit.errors import ImageError
from sevkit.guest.boot import Setting
from sevkit.guest.cases import Seen, cases_of
from sevkit.guest.launch import Launch, Qemu
from sevkit.guest.prove import Proof, prove
from sevkit.guest.qemu import GuestSpec
from sevkit.guest.running import Limits
from sevkit.guest.session import Session
from sevkit.image.manifest import load

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


SPEAKS = "the guest speaks on the agent's port"


@pytest.mark.parametrize(
    ("says", "evidence"),
    [
        ("hello()", SPEAKS),
        ("say(event='hello', params=dict(protocol=9, agent='of somebody else'))", SPEAKS),
        ("agent.sendall(b'an agent of somebody else\\n')", SPEAKS),
        ("console.sendall(b'Linux version 6.12')", "the kernel says 'Linux version'"),
    ],
)
def test_whatever_comes_over_the_agent_s_port_shows_that_the_system_runs(
    says: str, evidence: str, tmp_path: Path
) -> None:
    firmware = tmp_path / "firmware.fd"
    firmware.write_bytes(firmware_image(module("First", b"content")))
    (tmp_path / "image").mkdir()
    spec = a_spec(tmp_path, firmware=firmware)
    qemu = Qemu(write_double(tmp_path / "qemu", f"{says}\nsleep(60)"), (9, 1, 0))
    setting = Setting(qemu, Launch("tcg"), Limits(20, 20, 20))
    proof = prove(Session(load(image_samples.image(tmp_path / "image")), spec, setting))
    assert {(seen.seen, seen.evidence) for seen in proof.cases} == {("booted", evidence)}
    assert len(proof.cases) == 6
    assert not proof.is_proven


GOOD = Seen("good", "", ("booted",), "booted", SPEAKS, 1.0)
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
