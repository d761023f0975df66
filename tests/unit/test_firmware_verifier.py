# SPDX-License-Identifier: Apache-2.0
"""The verifier in firmware: found, found missing, and no trouble with damaged files."""

import json
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from firmware_samples import FILES, WITH_HASHES, firmware, volume
from test_firmware_modules import compressed, module

from sevkit.cli.common import main
from sevkit.errors import ImageError
from sevkit.firmware.ovmf import parse
from sevkit.firmware.verifier import (
    _HASHES,
    LOADER,
    Verifier,
    halts,
    lacks_verifier,
    measured_boot_problems,
    verifier,
)

ALL = b"".join(guid.bytes_le for guid in _HASHES)
MUTATIONS = 10_000


def image(*files: bytes, base: int = 0x810C00) -> bytes:
    rest = firmware(hashes=(base, 0x400 if base else 0), sections=WITH_HASHES)
    return bytes(volume(FILES, 65536, compressed(*files))) + rest


CHECKS = image(module(LOADER, ALL))
"""Firmware that holds a verifier."""


def test_a_loader_that_knows_all_hashes_holds_a_verifier() -> None:
    assert verifier(image(module(LOADER, ALL)), "x") is Verifier.PRESENT


@pytest.mark.parametrize("missing", range(3))
def test_a_loader_that_lacks_one_hash_does_not_verify(missing: int) -> None:
    code = b"".join(guid.bytes_le for n, guid in enumerate(_HASHES) if n != missing)
    assert verifier(image(module(LOADER, code)), "x") is Verifier.NONE


def test_hashes_in_another_module_are_no_verifier() -> None:
    data = image(module("Other", ALL), module(LOADER, b"none"))
    assert verifier(data, "x") is Verifier.NONE


def test_firmware_without_a_loader_or_a_place_is_called_so() -> None:
    assert verifier(image(module("Other", ALL)), "x") is Verifier.UNKNOWN
    assert verifier(image(module(LOADER, ALL), base=0), "x") is Verifier.NO_PLACE


@pytest.mark.parametrize(
    ("code", "value"), [(ALL, "holds-verifier"), (b"none", "advertises-but-does-not-verify")]
)
def test_inspect_says_what_was_found(tmp_path: Path, code: bytes, value: str) -> None:
    path = tmp_path / "OVMF.fd"
    path.write_bytes(image(module(LOADER, code)))
    made = CliRunner().invoke(main, ["firmware", "inspect", "--json", str(path)])
    record = json.loads(made.output)
    assert record["verifier"] == value
    assert LOADER in record["modules"]
    text = CliRunner().invoke(main, ["firmware", "inspect", str(path)]).output
    assert ("does NOT check" in text) == (code != ALL)


def test_the_age_of_a_verifier_decides_whether_it_stops() -> None:
    assert [halts(version) for version in ("2024.05-2", "2024.08-1", "2025.02-8+deb13u1")] == [
        False,
        True,
        True,
    ]
    assert halts("1:2023.11-1") is False
    assert halts("1:20.4") is halts(None) is None


def test_what_is_known_not_to_check_is_told_from_what_is_not_known() -> None:
    assert [kind for kind in Verifier if lacks_verifier(kind)] == [Verifier.NO_PLACE, Verifier.NONE]


def test_each_thing_that_is_wrong_for_a_measured_boot_is_named() -> None:
    facts = parse(image(module(LOADER, ALL)), "x")
    assert measured_boot_problems(facts, Verifier.PRESENT, "2025.02-8", ["sev"]) == []
    [old] = measured_boot_problems(facts, Verifier.PRESENT, "2023.11-1", ["sev"])
    assert "of edk2 2023.11-1, goes on after a bad hash" in old
    [unchecked] = measured_boot_problems(facts, Verifier.NONE, "2025.02-8", ["sev"])
    assert "checks none" in unchecked
    whole = replace(facts, size=0x1E0000, has_variable_store=True)
    assert measured_boot_problems(whole, Verifier.PRESENT, None, ["sev"]) == []
    for half in (
        replace(facts, loads_as=("pflash",)),
        replace(facts, size=0x1E0000, has_variable_store=False),
        replace(facts, size=0x37C000, has_variable_store=False),
    ):
        [split] = measured_boot_problems(half, Verifier.PRESENT, None, ["sev"])
        assert "one half of a split build" in split


def test_ten_thousand_damaged_files_give_an_answer_or_one_error() -> None:
    good = image(module("A", b"code" * 99), module(LOADER, ALL))
    chance = random.Random(5)
    answers, start = 0, time.monotonic()
    for turn in range(MUTATIONS):
        data = bytearray(good)
        if turn % 4 == 0:
            del data[chance.randrange(len(data)) :]
        elif turn % 4 == 1:
            data = bytearray(chance.randbytes(chance.randrange(4096)))
        else:
            places = 1500 if turn % 4 == 2 else len(data)
            for _ in range(1 + turn % 3):
                data[chance.randrange(places)] ^= 1 << chance.randrange(8)
        try:
            answers += verifier(bytes(data), "x") in Verifier
        except ImageError as error:
            assert error.what.startswith("x ")  # noqa: PT017
    assert 100 < answers < MUTATIONS
    assert time.monotonic() - start < 60
