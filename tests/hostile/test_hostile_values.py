# SPDX-License-Identifier: Apache-2.0
"""Whatever a manifest, firmware or a patch series holds, there is an answer or one error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from firmware_samples import WITH_HASHES, firmware
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_firmware_verifier import CHECKS
from test_patches import HEADER, diff

from sevkit.errors import SevkitError
from sevkit.firmware.modules import modules
from sevkit.firmware.ovmf import parse
from sevkit.firmware.verifier import verifier
from sevkit.image.manifest import read_manifest, text_of
from sevkit.patches import read_series

T = TypeVar("T")
MANIFEST = json.loads((Path(__file__).parents[1] / "golden" / "manifest.json").read_text())
FIRMWARE = (
    firmware(code_bytes=16384),
    firmware(hashes=(0x810C00, 0x400), sections=WITH_HASHES, code_bytes=16384),
    CHECKS,
)
MANY = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in JSON: the keys that lead there."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    return [place for key in keys for place in ((*at, key), *places(value[key], (*at, key)))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@MANY
@given(edits=st.dictionaries(st.sampled_from(places(MANIFEST)), VALUES, max_size=3))
@example(edits={})
@example(edits={("name",): "a\nb"})
@example(edits={("sources", 0, "origin"): {}})
@example(edits={("memory", "minimum_mib"): 10**400})
def test_any_values_in_a_manifest_are_read_as_they_are_or_refused(
    edits: dict[tuple[Any, ...], Any], folder: Path
) -> None:
    made = json.loads(json.dumps(MANIFEST))
    for (*way, last), value in edits.items():
        place = made
        for key in way:
            place = place[key] if _has(place, key) else {}
        if _has(place, last):
            place[last] = value
    text = json.dumps(made, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    path = folder / "manifest.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = outcome(lambda: read_manifest(path))
    if isinstance(found, SevkitError):
        assert edits
        assert str(path) in str(found)
    else:
        assert text_of(found) == text
        assert all("\n" not in line for line in found.remarks())


def outcome(read: Callable[[], T]) -> T | SevkitError:
    try:
        return read()
    except SevkitError as error:
        return error


def _has(place: Any, key: Any) -> bool:
    if isinstance(place, list):
        return isinstance(key, int) and key < len(place)
    return isinstance(place, dict) and key in place


@MANY
@given(
    seed=st.sampled_from(FIRMWARE),
    edits=st.lists(st.tuples(st.integers(1, 5000), st.binary(max_size=24)), max_size=4),
    cut=st.integers(0, 200),
)
@example(seed=FIRMWARE[0], edits=[], cut=0)
def test_firmware_damaged_at_its_end_is_described_or_refused(
    seed: bytes, edits: list[tuple[int, bytes]], cut: int
) -> None:
    """Reset vector, GUIDed table and SEV metadata lie before the end."""
    data = bytearray(seed[: len(seed) - cut * 16])
    for before_the_end, new in edits:
        at = max(0, len(data) - before_the_end)
        data[at : at + len(new)] = new
    for read in (
        lambda: json.dumps(parse(bytes(data), "it").record()),
        lambda: json.dumps(modules(bytes(data), "it")),
        lambda: str(verifier(bytes(data), "it")),
    ):
        found = outcome(read)
        if isinstance(found, SevkitError):
            assert edits or cut
            assert str(found).startswith("it ")


LINES = st.sampled_from(
    [
        *("one.patch", "two.patch", "one.patch -p0", "one.patch -p", "# why", "", "../one.patch"),
        *("one.patch  # why", "/one.patch", "é.patch", "a\0b", "-p1", "one.patch -R", "x" * 300),
    ]
)


@MANY
@given(
    lines=st.lists(LINES | st.text(max_size=12), max_size=5),
    patch=st.text(max_size=40),
    at=st.integers(0, 300),
)
@example(lines=["one.patch"], patch="", at=0)
def test_any_series_and_patch_is_read_or_refused_with_its_name(
    lines: list[str], patch: str, at: int, folder: Path
) -> None:
    good = HEADER + diff()
    text = good[:at] + patch + good[at:]
    (folder / "one.patch").write_bytes(text.encode("utf-8", "surrogatepass"))
    (folder / "series").write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    found = outcome(lambda: read_series(folder))
    if isinstance(found, SevkitError):
        assert patch or lines != ["one.patch"]
        assert "series" in str(found) or ".patch" in str(found)
    else:
        assert json.dumps([each.record() for each in found.patches])
        for path in found.touched:
            assert not path.is_absolute()
            assert ".." not in path.parts
