# SPDX-License-Identifier: Apache-2.0
"""Launch measurements: against the specifications, against published ones, and what is refused."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import launch_digests
import pytest
from firmware_samples import SNP_SECTIONS, firmware
from launch_digests import SIGNATURES, Snp

from sevkit.errors import ImageError, RecipeError
from sevkit.measure import digests
from sevkit.measure.digests import CPUS, INITS, Boot, Init, Measurement, Wanted, measure

RESET = 0x80B004
PLACE = 0x80FC00
SECTIONS = (
    (0x800000, 0x9000, 1),
    (0x80A000, 0x3000, 1),
    (0x80D000, 0x1000, 2),
    (0x80E000, 0x1000, 3),
    (0x80F000, 0x1000, 16),
    (0x810000, 0x10000, 1),
)
"""Of the firmware that the published digests below are of."""
CMDLINE = 'console=ttyS0 name="a b"'
WANTED = Wanted(
    modes=("sev", "sev-es", "sev-snp"),
    vcpus=(1, 3),
    cpus=("EPYC-Milan", "EPYC-Genoa"),
    guest_features=(0x1, 0x21),
)


@pytest.fixture
def boot() -> Boot:
    return Boot(
        "OVMF.fd",
        firmware(hashes=(PLACE, 0x400), sections=SECTIONS, reset=RESET),
        b"kernel" * 999,
        b"initrd" * 777,
        CMDLINE,
        verifies=True,
    )


def expected(row: Measurement, boot: Boot, sections: Sequence[tuple[int, int, int]]) -> str:
    """The digest of a launch, by the specifications."""
    table = launch_digests.hash_table(boot.kernel, boot.initrd or b"", boot.cmdline)
    if row.mode == "sev":
        return launch_digests.sev(boot.firmware, table)
    assert row.cpu is not None
    assert row.vcpus is not None
    assert row.guest_features is not None
    areas = launch_digests.save_areas(
        row.vcpus,
        RESET,
        SIGNATURES[row.cpu],
        row.guest_features,
        with_fpu=row.init != "KVM_SEV_INIT",
        vmm=row.vmm,
    )
    if row.mode == "sev-es":
        return launch_digests.sev(boot.firmware, table, areas)
    chain = Snp()
    chain.firmware(boot.firmware)
    chain.sections(sections, table, PLACE, row.vmm)
    return chain.save_areas(areas)


def test_every_digest_is_what_the_specifications_say(boot: Boot) -> None:
    rows = measure(boot, WANTED)
    for row in rows:
        assert row.digest == expected(row, boot, SECTIONS), row.title
        assert row.covers == "kernel"
    assert len({row.digest for row in rows}) == len(rows)
    assert [sum(row.mode == mode for row in rows) for mode in WANTED.modes] == [1, 12, 8]


def test_a_kernel_with_its_initramfs_inside_is_measured_with_the_hash_of_nothing(
    boot: Boot,
) -> None:
    for row in measure(replace(boot, initrd=None), WANTED):
        assert row.digest == expected(row, replace(boot, initrd=None), SECTIONS)


def test_sev_es_differs_by_the_call_that_made_the_guest_and_knows_only_debug_swap(
    boot: Boot,
) -> None:
    rows = [row for row in measure(boot, WANTED) if row.mode == "sev-es"]
    assert {(row.init, row.guest_features) for row in rows} == {
        ("KVM_SEV_INIT", 0),
        ("KVM_SEV_INIT2", 0),
        ("KVM_SEV_INIT2", 0x20),
    }


@pytest.mark.parametrize("bit", [*range(1, 11), 12, 14, 15, 16, 21])
def test_every_feature_that_a_guest_can_have_is_measured(boot: Boot, bit: int) -> None:
    features = 1 | 1 << bit
    wanted = Wanted(("sev-snp",), (1,), ("EPYC-Milan",), (features,))
    [row] = measure(boot, wanted)
    assert row.digest == expected(row, boot, SECTIONS)


def test_every_cpu_model_has_the_signature_that_amd_s_formula_gives(boot: Boot) -> None:
    assert SIGNATURES.keys() == set(CPUS)
    rows = measure(boot, Wanted(("sev-es", "sev-snp"), (1,), CPUS))
    assert {row.cpu for row in rows} == set(CPUS)
    for row in rows:
        assert row.digest == expected(row, boot, SECTIONS), row.title


def test_a_launch_that_is_asked_for_twice_is_measured_once(boot: Boot) -> None:
    twice = Wanted(WANTED.modes * 2, (1, 3, 1), WANTED.cpus * 2, (0x1, 0x21, 0x1), ("qemu",) * 2)
    assert measure(boot, twice) == measure(boot, WANTED)


def test_sev_es_alone_takes_features_without_snp_s_own(boot: Boot) -> None:
    alone = Wanted(("sev-es",), (1,), ("EPYC-Milan",), (0x20,), inits=("KVM_SEV_INIT2",))
    [row] = measure(boot, alone)
    assert (row.guest_features, row.digest) == (0x20, expected(row, boot, SECTIONS))
    with pytest.raises(RecipeError, match="bit 0"):
        measure(boot, replace(alone, modes=("sev-es", "sev-snp")))
    with pytest.raises(RecipeError, match="the reserved bits 0x800"):
        measure(boot, replace(alone, guest_features=(0x800,)))


@pytest.mark.parametrize("init", INITS)
def test_one_of_the_calls_that_make_a_guest_can_be_asked_for(boot: Boot, init: Init) -> None:
    rows = measure(boot, replace(WANTED, inits=(init,)))
    assert {row.init for row in rows if row.mode == "sev-es"} == {init}
    assert rows == [row for row in measure(boot, WANTED) if row.init in (None, init)]


# Digests in tests/test_guest.py of virtee/sev-snp-measure (Apache-2.0), of firmware that hashes to:
PUBLISHED_FIRMWARE = (
    "edcf6d1c57ce868a167c990f58c8667c698269ef9e080324"
    "6419eea914186343054d557e1f17acd93b032c106bc70d25"
)
PUBLISHED: list[tuple[int, int, str | None, str]] = [
    (
        1,
        0x1,
        None,
        "c4ee889e2ca38dc7137f5a448c56960a1eb5c08919fd2107"
        "a1249eb899afda42be9ba11e417530938cfa8d62a5890557",
    ),
    (
        1,
        0x21,
        None,
        "d35ca073e73701aa476d9d1b2feeee9efd935b7ec9dc43a0"
        "105857f506addb48ba3a1d443e5c10db430ad1a436ac5b2c",
    ),
    (
        1,
        0x1,
        "console=ttyS0 loglevel=7",
        "72b3f3c1ed0df9e5279eb2317a9861be3b878537e8513b31"
        "8b49c1e184f6228e3ff367d133a8688f430e412ba66f558f",
    ),
    (
        4,
        0x1,
        "",
        "74b2f532253c8214df9998ba8df305aa98eb1733c0010014"
        "c5ed728b8d1a9fa83df0a0caf047e9cee14087cc79bbc7c9",
    ),
    (
        4,
        0x21,
        "",
        "6258fc4d3c60d6964de64811587a903f309b9391efdccd44"
        "8bb8bc39b78c1d153378077ca37e32d06d6ead319a5c7bce",
    ),
]


@pytest.mark.parametrize(("vcpus", "features", "cmdline", "digest"), PUBLISHED)
def test_the_specifications_as_read_here_give_the_published_digests(
    vcpus: int, features: int, cmdline: str | None, digest: str
) -> None:
    table = b"" if cmdline is None else launch_digests.hash_table(b"", b"", cmdline)
    chain = Snp(bytes.fromhex(PUBLISHED_FIRMWARE))
    chain.sections(SECTIONS, table, PLACE)
    areas = launch_digests.save_areas(vcpus, RESET, SIGNATURES["EPYC-v4"], features)
    assert chain.save_areas(areas) == digest


@pytest.mark.parametrize(("vcpus", "features", "cmdline", "digest"), PUBLISHED)
def test_the_published_digests_come_out_of_what_is_shipped(
    monkeypatch: pytest.MonkeyPatch, vcpus: int, features: int, cmdline: str | None, digest: str
) -> None:
    """Of the published firmware there is its digest, not its bytes: it stands for ours."""
    place = (0, 0) if cmdline is None else (PLACE, 0x400)
    data = firmware(hashes=place, sections=SECTIONS, reset=RESET)
    monkeypatch.setattr(digests._Launch, "_firmware_pages", bytes.fromhex(PUBLISHED_FIRMWARE))
    wanted = Wanted(("sev-snp",), (vcpus,), ("EPYC-v4",), (features,))
    [row] = measure(Boot("OVMF.fd", data, b"", None, cmdline or "", verifies=True), wanted)
    assert row.digest == digest


# Of the same firmware and tests, on EC2 as it was when they were written; features and digest.
PUBLISHED_EC2 = {
    0x1: "760b6e51039d2d6c1fc6d38ca5c387967d158e0294883e45"
    "22c36f89bd61bfc9cdb975cd1ceedffbe1b23b1daf4e3f42",
    0x21: "cd4a4690a1f679ac8f3d6e446aab8d0061d535cc94615d98"
    "c7d7dbe4b16dbceeaf7fc7944e7874b202e27041f179e7e6",
}


@pytest.mark.parametrize("features", PUBLISHED_EC2)
def test_ec2_as_read_here_gives_the_published_digests(features: int) -> None:
    then = launch_digests.EC2_UNTIL_2026
    chain = Snp(bytes.fromhex(PUBLISHED_FIRMWARE))
    chain.sections(SECTIONS, launch_digests.hash_table(b"", b"", ""), PLACE, then)
    areas = launch_digests.save_areas(1, RESET, 0, features, vmm=then)
    assert chain.save_areas(areas) == PUBLISHED_EC2[features]


@pytest.mark.parametrize(
    ("changes", "covers"),
    [
        ({"hashes": (0, 0)}, ("firmware", "firmware")),
        ({"sections": SNP_SECTIONS}, ("kernel", "firmware")),
        ({}, ("kernel", "kernel")),
    ],
)
def test_what_is_not_measured_is_said_and_does_not_move_the_digest(
    boot: Boot, changes: dict[str, Any], covers: tuple[str, str]
) -> None:
    shape = {"hashes": (PLACE, 0x400), "sections": SECTIONS, "reset": RESET, **changes}
    boot = replace(boot, firmware=firmware(**shape))
    wanted = replace(WANTED, modes=("sev", "sev-snp"), vcpus=(1,), cpus=("EPYC-Milan",))
    before = measure(boot, wanted)
    assert (before[0].covers, before[-1].covers) == covers
    after = measure(replace(boot, kernel=b"another"), wanted)
    for one, other in zip(before, after, strict=True):
        assert (one.digest == other.digest) == (one.covers == "firmware")


def test_firmware_that_nobody_has_shown_to_check_is_not_called_measured(boot: Boot) -> None:
    for verifies in (None, False):
        rows = measure(replace(boot, verifies=verifies), WANTED)
        assert {row.covers for row in rows} == {"kernel-unchecked"}


def test_ec2_and_gce_start_other_vcpus_and_only_for_snp(boot: Boot) -> None:
    wanted = Wanted(WANTED.modes, (1, 3), ("EPYC-Milan",), vmms=("ec2", "gce"))
    rows = measure(boot, wanted)
    assert {(row.mode, row.vmm) for row in rows} == {("sev-snp", "ec2"), ("sev-snp", "gce")}
    for row in rows:
        assert row.digest == expected(row, boot, SECTIONS), row.title
    qemu = measure(boot, replace(wanted, vmms=("qemu",)))
    assert len({row.digest for row in [*rows, *qemu]}) == len([*rows, *qemu])


@pytest.mark.parametrize(
    ("cmdline", "why"),
    [
        ("a\0b", "NUL"),
        ('name="a b', "quote"),
        ("größe=1", "ASCII"),
        ("a\nb", "ASCII"),
        ("x" * 2048, "2048 bytes, the kernel takes 2047"),
    ],
)
def test_a_command_line_that_no_kernel_takes_is_refused(boot: Boot, cmdline: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        measure(replace(boot, cmdline=cmdline), WANTED)
    assert measure(replace(boot, cmdline="x" * 2047), WANTED)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"vcpus": (0,)}, "0 is no number of vCPUs"),
        ({"vcpus": (513,)}, "513 is no number"),
        ({"cpus": ("Opteron",)}, "Opteron is none of the CPU models"),
        ({"guest_features": (0x20,)}, "bit 0"),
        ({"guest_features": (1 | 1 << 64,)}, "the reserved bits"),
        ({"guest_features": ((1 << 64) - 1,)}, "the reserved bits 0xffffffffffde2800"),
        ({"guest_features": (1 | 1 << 11,)}, "the reserved bits 0x800"),
        ({"guest_features": (-1,)}, "the reserved bits"),
    ],
)
def test_a_launch_that_can_t_be_is_refused(boot: Boot, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        measure(boot, replace(WANTED, **changes))
    assert measure(boot, WANTED)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ({"hashes": (0x80FFF0, 0x400)}, "crosses a page"),
        ({"sections": (*SECTIONS, (0x900000, 0x1000, 77))}, "unknown type 77"),
        ({"sections": ((0x800000, 0x900, 1), *SECTIONS[1:])}, "not of whole pages"),
        ({"sections": ((0x80D000, 0x2000, 2), *SNP_SECTIONS)}, "secrets .* not of whole pages"),
        ({"reset": 0}, "no SEV-ES reset address"),
        ({"version": 2}, "no SEV metadata of a known version"),
    ],
)
def test_firmware_that_would_give_a_meaningless_digest_is_refused(
    boot: Boot, shape: dict[str, Any], why: str
) -> None:
    good: dict[str, Any] = {"hashes": (PLACE, 0x400), "sections": SECTIONS, "reset": RESET}
    other = replace(boot, firmware=firmware(**{**good, **shape}))
    with pytest.raises(ImageError, match=why):
        measure(other, replace(WANTED, modes=("sev-snp",)))
    assert measure(replace(boot, firmware=firmware(**good)), WANTED)


def test_a_file_that_is_no_firmware_is_refused_also_for_plain_sev(boot: Boot) -> None:
    noise = replace(boot, firmware=hashlib.sha256(b"noise").digest() * 4096)
    with pytest.raises(ImageError, match="not an OVMF image"):
        measure(noise, replace(WANTED, modes=("sev",)))


def test_damaged_firmware_gives_digests_or_one_clear_error(boot: Boot) -> None:
    good = boot.firmware
    chance = random.Random(1)
    wanted = replace(WANTED, vcpus=(2,), cpus=("EPYC-Milan",), guest_features=(1,))
    answers = {True: 0, False: 0}
    for number in range(1000):
        data = bytearray(good)
        tail = len(data) - chance.choice((200, 5000, len(data)))
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(tail, len(data))] = chance.randrange(256)
        if number % 9 == 0:
            del data[chance.randrange(len(data)) :]
        damaged = replace(boot, firmware=bytes(data))
        problem = ""
        try:
            assert measure(damaged, replace(wanted, modes=(chance.choice(wanted.modes),)))
        except ImageError as error:
            problem = str(error)
        assert "sev-snp-measure" not in problem
        answers[not problem] += 1
    assert min(answers.values()) > 100
