# SPDX-License-Identifier: Apache-2.0
"""Firmware images: what is read from them, and what is refused."""

import random
import struct
import time
from pathlib import Path
from uuid import UUID

import pytest
from firmware_samples import (
    AMD64,
    FILES,
    HASHES,
    I386,
    METADATA,
    RESET,
    SNP_SECTIONS,
    VARIABLES,
    WITH_HASHES,
    firmware,
    sev_metadata,
    volume,
)

from sevkit.errors import ImageError
from sevkit.firmware.ovmf import LIMIT_BYTES, FirmwareFacts, parse, read_firmware

HASH_PLACE = (0x810C00, 0x400)


def facts(**changes: object) -> FirmwareFacts:
    return parse(firmware(**changes), "OVMF.fd")  # type: ignore[arg-type]


def refusal(data: bytes) -> str:
    parse(firmware(), "OVMF.fd")
    with pytest.raises(ImageError) as caught:
        parse(data, "some.fd")
    assert caught.value.what.startswith("some.fd ")
    assert caught.value.hint
    return str(caught.value)


def test_an_image_for_all_modes_is_recognised() -> None:
    found = facts()
    assert found.sec_bits == 64
    assert found.has_variable_store
    assert found.loads_as == ("bios", "pflash")
    assert found.problems == {"sev": (), "sev-es": (), "sev-snp": ()}
    assert [entry.name for entry in found.table] == [
        "sev-es-reset",
        "sev-secret",
        "sev-hash-table",
        "sev-metadata",
    ]
    assert found.table[0].data == "04b08000"
    assert found.metadata is not None
    assert [section.name for section in found.metadata] == ["snp-memory", "secrets", "cpuid"]


def test_an_entry_that_is_not_known_is_kept_without_a_name() -> None:
    guid = UUID("12345678-1234-1234-1234-123456789abc")
    entry = facts(more={guid: b"\x01\x02\x03"}).table[0]
    assert (entry.guid, entry.name, entry.data) == (str(guid), "", "010203")


@pytest.mark.parametrize("hashes", [(0, 0), (0, 0x400), (0x810C00, 0), (0x810C00, 175)])
def test_a_place_for_hashes_that_is_zero_or_too_small_is_none(hashes: tuple[int, int]) -> None:
    assert facts(hashes=hashes, sections=WITH_HASHES).kernel_hashes is None
    assert facts(hashes=(0x810C00, 176), sections=WITH_HASHES).kernel_hashes is not None


def test_a_place_for_hashes_serves_snp_only_if_the_metadata_have_it_too() -> None:
    with_section = facts(hashes=HASH_PLACE, sections=WITH_HASHES).kernel_hashes
    without = facts(hashes=HASH_PLACE, sections=SNP_SECTIONS).kernel_hashes
    elsewhere = facts(hashes=(0x820C00, 0x400), sections=WITH_HASHES).kernel_hashes
    assert with_section
    assert (with_section.base, with_section.size, with_section.for_snp) == (*HASH_PLACE, True)
    assert without
    assert not without.for_snp
    assert elsewhere
    assert not elsewhere.for_snp


def test_nothing_is_said_of_whether_hashes_are_verified() -> None:
    assert facts(hashes=HASH_PLACE, sections=WITH_HASHES).verifies_kernel_hashes is None


@pytest.mark.parametrize(
    ("changes", "mode", "reason"),
    [
        ({"machine": I386}, "sev-es", "starts in 32-bit code"),
        ({"machine": 0xAA64}, "sev-es", "has no module to start in"),
        ({"reset": 0}, "sev-es", "no SEV-ES reset address"),
        ({"sections": None}, "sev-snp", "no SEV metadata to prepare"),
        ({"version": 2}, "sev-snp", "no SEV metadata of a known version"),
        ({"sections": SNP_SECTIONS[:2]}, "sev-snp", "no section cpuid"),
        ({"code_bytes": 65536 + 4096}, "sev-snp", "no multiple of 64 KiB"),
    ],
)
def test_a_mode_that_can_not_be_launched_has_its_reason(
    changes: dict[str, object], mode: str, reason: str
) -> None:
    found = facts(**changes)
    assert any(reason in line for line in found.problems[mode])  # type: ignore[index]
    assert found.problems["sev"] == ()
    assert facts().problems[mode] == ()  # type: ignore[index]


def test_what_speaks_against_sev_es_speaks_against_snp_too() -> None:
    problems = facts(machine=I386).problems
    assert set(problems["sev-es"]) <= set(problems["sev-snp"])


def test_a_large_file_before_the_sec_module_is_passed_over() -> None:
    code = bytearray(firmware(variables=False))
    sec = bytes(code[72:200])
    big = bytearray(bytes(16) + b"\0\0\x07\x01\xff\xff\xff\xf8" + struct.pack("<Q", 32 + 64))
    code[72 : 72 + 96] = big + bytes(64)
    code[168 : 168 + len(sec)] = sec
    assert parse(bytes(code), "OVMF.fd").sec_bits == 64


def test_a_te_module_is_understood() -> None:
    code = bytearray(firmware(variables=False))
    start = 72 + 24
    code[start + 3] = 0x12
    code[start + 4 : start + 8] = b"VZ" + struct.pack("<H", AMD64)
    assert parse(bytes(code), "OVMF.fd").sec_bits == 64


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"hello, world\n" * 5000, "does not begin with a firmware volume"),
        (random.Random(1).randbytes(2 << 20), "does not begin with a firmware volume"),
        (b"QFI\xfb" + bytes(65536), "qemu-img convert"),
        (bytes(volume(VARIABLES, 131072)), "store of UEFI variables"),
        (bytes(volume(FILES, 131072)), "no GUIDed table"),
        (firmware()[:-1], "truncated"),
        (firmware()[:70000], "truncated"),
        (firmware()[:65536], "store of UEFI variables"),
        (firmware()[:50], "ends within the header of its first firmware volume"),
        (firmware() + b"\n", "no GUIDed table"),
        (firmware().ljust(LIMIT_BYTES + 1), "larger than 16 MiB"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_ovmf_is_refused_with_the_reason(data: bytes, why: str) -> None:
    assert why in refusal(data)


def changed(offset: int, value: bytes) -> bytes:
    data = bytearray(firmware(more={}))
    start = offset if offset >= 0 else len(data) + offset
    data[start : start + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (changed(50, b"\0\0"), "checksum of the volume at 0x0"),
        (changed(65536 + 33, b"\xff"), "truncated"),
        (changed(48, b"\1\0"), "header of 1 bytes"),
        (changed(-50, b"\xff\xff\x00"), "no GUIDed table"),
        (changed(-50, b"\x11\0"), "claims 17 bytes"),
        (changed(-50, b"\x26\0"), "claims 22 bytes"),
        (changed(-50, b"\x13\0"), "belong to no entry"),
        (changed(-68, b"\x11\0"), "claims 17 bytes"),
        (changed(-68, b"\xff\xff"), "claims 65535 bytes"),
        (firmware(more={HASHES: b"1234"}), "bad entry sev-hash-table"),
        (firmware(more={METADATA: struct.pack("<I", 0xFFFFFFFF)}), "4294967295 bytes before"),
        (firmware(more={METADATA: struct.pack("<I", 64)}), "no SEV metadata at"),
        (changed(-4096, b"ASEV\xff\xff\xff\xff"), "no SEV metadata at"),
        (changed(-4096, sev_metadata(SNP_SECTIONS)[:12] + b"\x09"), "bytes for 9 sections"),
    ],
)
def test_a_damaged_image_is_refused_with_the_place(data: bytes, why: str) -> None:
    assert why in refusal(data)


def test_an_entry_that_is_there_twice_is_refused() -> None:
    entry = struct.pack("<I", 0x80B004) + struct.pack("<H", 22) + RESET.bytes_le
    data = bytearray(firmware(sections=None))
    end = len(data) - 32 - 18
    [size] = struct.unpack_from("<H", data, end)
    data[end - size + 18 - 22 : end - size + 18] = entry
    struct.pack_into("<H", data, end, size + 22)
    assert "bad entry sev-es-reset" in refusal(bytes(data))


def test_a_file_that_can_not_be_read_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "OVMF.fd").write_bytes(firmware())
    assert read_firmware(tmp_path / "OVMF.fd").size == 131072
    with pytest.raises(ImageError, match="can't be read"):
        read_firmware(tmp_path / "missing.fd")
    with pytest.raises(ImageError, match="can't be read"):
        read_firmware(tmp_path)


def mutated(data: bytes, chance: random.Random) -> bytes:
    copy = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.choice(
            [0, 65536, len(copy) - 4096, len(copy) - 200, chance.randrange(len(copy))]
        )
        place = min(start + chance.randrange(200), len(copy) - 1)
        copy[place] = chance.choice([0, 0xFF, chance.randrange(256), copy[place] ^ 1])
    if chance.random() < 0.1:
        del copy[chance.randrange(len(copy)) :]
    return bytes(copy)


def test_ten_thousand_mutations_give_an_answer_or_one_error() -> None:
    sample, chance = firmware(hashes=HASH_PLACE, sections=WITH_HASHES), random.Random(20)
    answers = refusals = 0
    for _ in range(10_000):
        try:
            parse(mutated(sample, chance), "mutated.fd")
            answers += 1
        except ImageError:
            refusals += 1
    assert min(answers, refusals) > 1000


def test_the_most_tangled_image_is_read_in_no_time() -> None:
    tiny = bytes(16) + b"\0\0\x07\0\x18\0\0\xf8"  # a file that is nothing but its header
    data = volume(FILES, LIMIT_BYTES, tiny * ((LIMIT_BYTES - 4096) // 24))
    data[-4096:] = firmware()[-4096:]
    started = time.monotonic()
    assert parse(bytes(data), "tangled.fd").sec_bits is None
    assert time.monotonic() - started < 10
