# SPDX-License-Identifier: Apache-2.0
"""Damage anywhere in a store: the next build has the right bytes or one clear error, never wrong
ones, and the build after that succeeds."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_lab import Lab, damage

from sevkit.errors import SevkitError
from sevkit.image import output
from sevkit.recipe.model import DebSource
from sevkit.sources import Pin, PinMemory
from sevkit.store import uptodate
from sevkit.store.listing import list_tree
from sevkit.store.store import Store

ROUNDS = 40


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab.in_folder(tmp_path_factory.mktemp("lab") / "inputs")


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which everything was built once, and the image that came out."""
    place = tmp_path_factory.mktemp("whole")
    lab.build(place)
    return place


def harm(path: Path, chance: random.Random) -> str:
    """Flip a bit of a file, cut it off, or remove it; which."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    kind = chance.choice(["flip", "flip", "cut", "remove"])
    if kind == "flip" and content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif kind == "cut" and content:
        path.write_bytes(content[: chance.randrange(len(content))])
    else:
        path.unlink()
    return kind


def files(store: Path) -> Iterator[Path]:
    yield from sorted(
        path for path in store.rglob("*") if path.is_file() and path.parent.name != "locks"
    )


def failure(lab: Lab, place: Path, *, force: bool = False) -> SevkitError | None:
    try:
        lab.build(place, force=force)
    except SevkitError as error:
        return error
    return None


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_build_after_random_damage_is_right_or_refuses_and_the_one_after_it_succeeds(
    lab: Lab, whole: Path, tmp_path: Path, seed: int, force: bool
) -> None:
    chance = random.Random(seed)
    place = tmp_path / "place"
    shutil.copytree(whole / "store", place / "store", symlinks=True)
    victims = chance.sample(list(files(place / "store")), chance.choice([1, 1, 2, 5]))
    for path in victims:
        harm(path, chance)
    for stage in lab.plan.stages:  # so that something has to be built from what was damaged
        if chance.random() < 0.4:
            shutil.rmtree(place / "store" / "entries" / stage.key[:2] / stage.key)
    right = list_tree(output.image_dir(whole / "output", lab.plan))
    image = output.image_dir(place / "output", lab.plan)
    if error := failure(lab, place, force=force):
        assert "damaged" in str(error) or "not in the store" in str(error)
        assert not image.exists()
        lab.build(place, force=force)
    if force:
        assert list(damage(place)) == [], "what was built anew took the place of what was damaged"
    assert list_tree(image) == right
    for stage in lab.plan.stages:
        if Store(place / "store").has(stage.key):
            record = Store(place / "store").record(stage.key)
            assert record in (None, stage.record())


def test_a_bit_flip_anywhere_in_a_remembered_lookup_makes_it_count_as_none(
    tmp_path: Path,
) -> None:
    memory, request = PinMemory(tmp_path / "pins"), DebSource(deb="crun")
    origin = {"kind": "deb", "package": "crun", "version": "1.8", "path": "pool/c/crun_1.8.deb"}
    pins = [Pin("blob:" + "ab" * 32, "crun_1.8_amd64.deb", 289288, origin)]
    memory.remember(request, pins)
    [path] = memory.folder.iterdir()
    good = path.read_bytes()
    for position in range(len(good)):
        for bit in (0, 1 + position % 7):  # the lowest keeps most text text
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            path.write_bytes(bad)
            assert memory.recall(request) in (None, pins)
    path.write_bytes(good)
    assert memory.recall(request) == pins


def test_a_bit_flip_anywhere_in_a_no_op_record_makes_it_count_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEVKIT_STORE", str(tmp_path))
    uptodate.remember(
        ["build"], answer="up to date: x", inputs=[], results=[], read_since_ns=time.time_ns()
    )
    [path] = (tmp_path / "uptodate").iterdir()
    good = path.read_bytes()
    assert uptodate.known_answer(["build"]) == "up to date: x"
    for position in range(len(good)):
        for bit in (0, 1 + position % 7):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            path.write_bytes(bad)
            assert uptodate.known_answer(["build"]) is None


def test_damage_beside_a_build_that_needs_nothing_is_not_its_concern(
    lab: Lab, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "store", tmp_path / "store", symlinks=True)
    assert list(damage(tmp_path)) == []
    [entry] = (tmp_path / "store").glob(f"entries/*/{lab.plan.stage('source').key}")
    (entry / "data" / "1").write_bytes(b"other")
    assert len(list(damage(tmp_path))) == 1
    lab.build(tmp_path)
