# SPDX-License-Identifier: Apache-2.0
"""Debian's own OVMF images: what they can do, and what no damage to them can do to us."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sevkit.archive import extract_member, unpack_deb
from sevkit.errors import ImageError, RecipeError, SourceError
from sevkit.firmware.ovmf import parse, read_firmware
from sevkit.recipe.model import DebSource
from sevkit.sandbox import Processes, SandboxRunner
from sevkit.sources import Apt
from sevkit.stage import Stage
from sevkit.stages.firmware import build_firmware

pytestmark = pytest.mark.network

MEMBER = "usr/share/ovmf/OVMF.fd"


@pytest.fixture(scope="module")
def package(mirror: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The package ovmf of a suite."""
    folder = tmp_path_factory.mktemp("ovmf")
    apt = Apt(folder / "apt")
    found: dict[str, Path] = {}

    def get(suite: str) -> Path:
        if suite not in found:
            [pin] = apt.resolve(DebSource(deb="ovmf", suite=suite))
            deb = folder / f"{suite}.deb"
            apt.fetch(pin, deb, lambda done, total, note: None)
            found[suite] = deb
        return found[suite]

    return get


def built(deb: Path, place: Path, member: str, *modes: str) -> Path:
    """The output of the firmware stage, run in the sandbox."""
    params = {"source": "ovmf", "members": [member], "modes": list(modes)}
    stage = Stage("firmware", "firmware", 1, params, {})
    for name in ("work", "out"):
        (place / name).mkdir(parents=True)
    (place / "log").touch()
    run = SandboxRunner(
        title="firmware",
        work=place / "work",
        inputs={"source": deb},
        log=place / "log",
        jobs=1,
        confined=True,
        processes=Processes(),
        on_progress=lambda done, total, note: None,
    )
    build_firmware(stage, {"source": deb}, place / "out", run)
    return place / "out"


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_the_firmware_of_the_shipped_recipes_can_do_all_modes_but_takes_no_hashes(
    package: Callable[[str], Path], tmp_path: Path, suite: str
) -> None:
    out = built(package(suite), tmp_path, MEMBER, "sev", "sev-es", "sev-snp")
    facts = read_firmware(out / "firmware.fd")
    assert facts.sec_bits == 64
    assert facts.loads_as == ("bios", "pflash")
    assert not any(facts.problems.values())
    assert facts.kernel_hashes is None
    assert {"sev-es-reset", "sev-hash-table", "sev-secret"} <= {row.name for row in facts.table}
    extract_member(package(suite), MEMBER, tmp_path / "taken")
    assert (out / "firmware.fd").read_bytes() == (tmp_path / "taken").read_bytes()


def test_bookworms_split_build_is_for_plain_sev_only(
    package: Callable[[str], Path], tmp_path: Path
) -> None:
    member = "usr/share/OVMF/OVMF_CODE_4M.fd"
    out = built(package("bookworm"), tmp_path / "sev", member, "sev", "sev-snp")
    facts = read_firmware(out / "firmware.fd")
    assert facts.problems["sev"] == ()
    assert "32-bit" in facts.problems["sev-es"][0]
    assert "no SEV metadata" in facts.problems["sev-snp"][1]
    assert facts.loads_as == ("pflash",)
    with pytest.raises(RecipeError, match="can't be launched in any mode"):
        built(package("bookworm"), tmp_path / "snp", member, "sev-snp")


def test_a_member_that_is_not_there_is_named_with_a_near_one(
    package: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(SourceError) as caught:
        built(package("bookworm"), tmp_path, "usr/share/ovmf/OVFM.fd", "sev")
    assert "did you mean usr/share/ovmf/OVMF.fd" in caught.value.what


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_of_all_files_of_the_package_the_code_is_taken_and_nothing_else(
    package: Callable[[str], Path], tmp_path: Path, suite: str
) -> None:
    unpack_deb(package(suite), tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    taken = set()
    for path in files:
        try:
            read_firmware(path)
        except ImageError as error:
            assert error.hint  # noqa: PT017
        else:
            taken.add(path.name)
    assert "OVMF.fd" in taken
    assert all(name.startswith(("OVMF.", "OVMF_CODE")) for name in taken)
    named = {path.name for path in files if path.suffix == ".fd"}
    assert named - taken == {name for name in named if "VARS" in name}


def test_ten_thousand_mutations_of_a_real_image_give_an_answer_or_one_error(
    package: Callable[[str], Path], tmp_path: Path
) -> None:
    extract_member(package("bookworm"), MEMBER, tmp_path / "OVMF.fd")
    sample, chance = (tmp_path / "OVMF.fd").read_bytes(), random.Random(6)
    tail = len(sample) - 4096
    headers = [
        place for place in range(0, len(sample), 4096) if sample[place + 40 :][:4] == b"_FVH"
    ]
    places = [
        *(range(place, place + 96) for place in headers),
        range(tail, len(sample)),
        range(len(sample) - 200, len(sample) - 30),
        range(len(sample)),
    ]
    answers = refusals = 0
    for _ in range(10_000):
        data = bytearray(sample)
        for _ in range(chance.randint(1, 3)):
            data[chance.choice(chance.choice(places))] = chance.choice(
                [0, 255, chance.randrange(256)]
            )
        if chance.random() < 0.05:
            del data[chance.randrange(len(data)) :]
        try:
            parse(bytes(data), "mutated.fd")
            answers += 1
        except ImageError:
            refusals += 1
    assert min(answers, refusals) > 1000
