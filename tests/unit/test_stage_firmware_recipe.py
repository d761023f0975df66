# SPDX-License-Identifier: Apache-2.0
"""What a recipe may say of firmware: taken as it is, or compiled from edk2's tree."""

import re
from pathlib import Path

import pytest
from recipe_samples import Project

from sevkit.errors import HostError
from sevkit.stages.edk2 import _folder_in

DOCS = Path(__file__).resolve().parents[2] / "docs"
TREE = 'sources.edk2 = { deb-src = "edk2", suite = "trixie" }\n'
BUILT = TREE + '[firmware]\nsource = "edk2"\nplatform = "OvmfPkg/AmdSev/AmdSevX64.dsc"\n'


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("patches/edk2-2025.02/series", "")
    return made


def test_firmware_is_taken_or_compiled(project: Project) -> None:
    taken = project.child(
        'firmware = { source = "ovmf", member = "usr/share/ovmf/OVMF.fd" }'
    ).firmware
    assert (taken.platform, taken.member) == (None, "usr/share/ovmf/OVMF.fd")
    built = project.child(
        f'{BUILT}patches = "edk2-2025.02"\ndefines = {{ FD_SIZE_1MB = "TRUE" }}\n'
    ).firmware
    assert built.platform == "OvmfPkg/AmdSev/AmdSevX64.dsc"
    assert dict(built.defines) == {"FD_SIZE_1MB": "TRUE"}
    assert (built.patches, built.target, built.toolchain) == ("edk2-2025.02", "RELEASE", "GCC5")
    assert (built.flash_device, dict(built.submodules)) == ("OVMF", {})


def test_a_source_package_is_taken_where_a_tree_is_built_and_refused_where_a_file_is(
    project: Project,
) -> None:
    edk2 = '\n[sources.edk2]\ndeb-src = "edk2"\n'
    built = '[firmware]\nsource = "edk2"\nplatform = "OvmfPkg/AmdSev/AmdSevX64.dsc"\n'
    assert project.child(built + edk2).firmware.source == "edk2"
    for part, line in (
        ("firmware.source", 'firmware = { source = "edk2" }'),
        ("kernel.source", 'kernel.source = "edk2"'),
        ("agent.source", 'agent = { source = "edk2", member = "a" }'),
    ):
        refused = project.refusal(line + edk2)
        assert f"child.toml:4: {part}: edk2 is a source package, which is" in refused


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            'firmware = { source = "ovmf", defines = { A = "1" } }',
            "firmware.defines: goes with platform: firmware is taken as it is without one",
        ),
        (
            'firmware = { source = "ovmf", patches = "edk2-2025.02" }',
            "firmware.patches: goes with platform: firmware is taken as it is without one",
        ),
        (
            BUILT + 'member = "a.fd"',
            "firmware.member: does not go with platform: firmware is taken",
        ),
        (BUILT + 'patches = "edk2-2025.03"', "firmware.patches: there is no patch series"),
        (BUILT + 'target = "Release"', 'firmware.target: "Release" is not possible: did you mean'),
        (BUILT + 'defines = { A = "a b" }', "the value of a macro: one word, such as TRUE or 4096"),
        (BUILT + 'defines = { "-D" = "1" }', "the name of a macro: capital letters"),
        (BUILT + 'toolchain = "gcc"', "a tool chain tag, such as GCC5"),
        (BUILT + 'submodules = { "a/b" = "opensssl" }', "no source is called 'opensssl'"),
        (
            BUILT + 'submodules = { "a" = "edk2", "a/b" = "edk2" }',
            'firmware.submodules."a/b": lies inside a, which is another one',
        ),
        (BUILT.replace("AmdSevX64.dsc", "AmdSevX64"), "the path of a .dsc file in edk2's tree"),
        (BUILT.replace("OvmfPkg", ".."), "the path of a .dsc file in edk2's tree"),
    ],
)
def test_what_does_not_go_together_is_named(project: Project, text: str, problem: str) -> None:
    assert problem in project.refusal(text)


def test_the_path_of_the_tree_has_one_length_everywhere() -> None:
    works = [Path("/a/work"), Path("/somewhere/else/entirely/ä/work")]
    assert len({len(str(work / _folder_in(work)).encode()) for work in works}) == 1
    with pytest.raises(HostError, match="SEVKIT_STORE"):
        _folder_in(Path("/", "long" * 50))


BLOCKS = re.findall(r"```toml\n(.*?)```", (DOCS / "firmware.md").read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_of_the_page_on_firmware_loads(project: Project, number: int) -> None:
    assert len(BLOCKS) == 3
    assert project.child(BLOCKS[number]).firmware.source in ("edk2", "ovmf")
