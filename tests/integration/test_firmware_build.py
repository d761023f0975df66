# SPDX-License-Identifier: Apache-2.0
"""Firmware compiled from edk2: Debian's, a tiny platform of the same tree, and that from git."""

import difflib
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from another_clock import another_clock

from sevkit.canonical import Json
from sevkit.errors import BuildError
from sevkit.firmware.ovmf import read_firmware
from sevkit.image.manifest import load
from sevkit.recipe.model import DebSourcePackage
from sevkit.sandbox import Processes, SandboxRunner
from sevkit.sources import Apt
from sevkit.stage import Stage
from sevkit.stages import edk2, edk2_tools
from sevkit.stages.edk2 import build_edk2

pytestmark = pytest.mark.network

REPOSITORY = Path(__file__).resolve().parents[2]
PLATFORM = "OvmfPkg/AmdSev/AmdSevX64"
HEADER = """\
Description: {name}
Author: A. Person <person@example.org>
Forwarded: no
Last-Update: 2024-05-31

"""
Texts = Mapping[str, str]
"""Path in the tree → text."""


def test_the_default_firmware_says_how_it_was_made(sev_guest: Path) -> None:
    manifest = load(sev_guest)
    firmware = manifest.firmware
    assert firmware.build is not None
    assert firmware.build.platform == f"{PLATFORM}.dsc"
    assert firmware.build.series == "edk2-2025.02"
    assert [patch.name[:4] for patch in firmware.build.patches] == ["0001"]
    assert "x64-baseline-abi.patch" in firmware.build.source_patches
    assert firmware.build.defines == {"GRUB_ENABLE": "FALSE"}
    assert re.fullmatch(r"2025\.02-\S+", firmware.build.version or "")
    assert set(firmware.build.tools) == {"gcc", "iasl", "ld", "nasm", "python3"}
    [*archives] = [each for each in manifest.sources if each.source == firmware.build.source]
    assert {each.origin["version"] for each in archives} == {firmware.build.version}
    assert len(archives) == 2


def test_the_default_firmware_can_be_measured_in_every_mode(sev_guest: Path) -> None:
    facts = read_firmware(sev_guest / "firmware.fd")
    assert not any(facts.problems.values())
    assert facts.kernel_hashes is not None
    assert facts.kernel_hashes.for_snp
    assert "bios" in facts.loads_as


def test_every_tool_that_is_asked_for_is_in_the_list_of_packages() -> None:
    rows = (REPOSITORY / "debian-packages.txt").read_text().splitlines()
    listed = {row.split()[1] for row in rows if row.startswith("build")}
    known = {"binutils", "python3"}  # come with gcc and python3-venv
    for module in (edk2, edk2_tools):
        assert set(module.TOOLS.values()) <= listed | known


# --- a platform of the reset vector and the first module -----------------------------------


class Firmware:
    """Builds platforms of Debian's edk2 with the tools of the default recipe."""

    def __init__(self, folder: Path, archives: Mapping[str, Path], tools: Path):
        self.folder = folder
        self.archives = archives
        self.tools = tools
        [orig] = [path for name, path in archives.items() if ".orig." in name]
        with tarfile.open(orig) as tar:
            top = tar.next()
            assert top is not None
            self.upstream = self._read(tar, top.name.partition("/")[0])

    @staticmethod
    def _read(tar: tarfile.TarFile, top: str) -> Texts:
        wanted = {f"{top}/{PLATFORM}{ending}" for ending in (".dsc", ".fdf")}
        found = {}
        for entry in tar:
            if entry.name in wanted:
                file = tar.extractfile(entry)
                assert file is not None
                found[entry.name.removeprefix(f"{top}/")] = file.read().decode()
            if len(found) == len(wanted):
                return found
        raise AssertionError(f"edk2 has no {PLATFORM}")

    def build(self, name: str, changed: Texts, *, jobs: int = 2) -> Path:
        """The output folder of a build in the folder `name`, with files of the tree changed."""
        place = self.folder / name
        for part in ("work", "out"):
            (place / part).mkdir(parents=True)
        patch = place / "tiny.patch"
        patch.write_bytes(self.patch(changed))
        inputs = {f"source/./{file}": path for file, path in self.archives.items()}
        inputs |= {"tools": self.tools, "patch/tiny.patch": patch}
        params: dict[str, Json] = {
            "trees": {".": sorted(self.archives)},
            "series": {"name": "tiny", "patches": [["tiny.patch", 1]]},
            "source": "edk2",
            "platform": f"{PLATFORM}.dsc",
            "target": "RELEASE",
            "toolchain": "GCC5",
            "defines": {"FD_SIZE_1MB": "TRUE"},
            "flash_device": "OVMF",
            "modes": ["sev"],
            "tools": {},
        }
        run = SandboxRunner(
            title="firmware",
            work=place / "work",
            inputs=inputs,
            log=place / "log",
            jobs=jobs,
            confined=True,
            processes=Processes(),
            on_progress=lambda done, total, note: None,
        )
        stage = Stage("firmware", "edk2", 1, params, dict.fromkeys(inputs, "blob:"))
        build_edk2(stage, inputs, place / "out", run)
        return place / "out"

    def patch(self, changed: Texts) -> bytes:
        """What makes the tree's files those of `changed`, for a series."""
        lines = [HEADER.format(name="Tiny")]
        for path, text in changed.items():
            lines += difflib.unified_diff(
                self.upstream[path].splitlines(keepends=True),
                text.splitlines(keepends=True),
                f"a/{path}",
                f"b/{path}",
            )
        return "".join(lines).encode()

    def tiny(self) -> dict[str, str]:
        """AmdSevX64 without PEI and DXE modules: compiled in seconds, and of no use."""
        dsc, fdf = self.upstream[f"{PLATFORM}.dsc"], self.upstream[f"{PLATFORM}.fdf"]
        components = dsc.index("  #\r\n  # PEI Phase modules\r\n")
        settings, modules = dsc.index("[PcdsFeatureFlag]"), dsc.index("[Components]")
        dsc = dsc[:settings] + dsc[modules:components]
        dsc = re.sub(r"(?m)^  PREBUILD .*\r\n", "", dsc)
        start = fdf.index("[FV.PEIFV]")
        later = re.sub(
            r"(?m)^(INF|APRIORI|  INF|\}|!if|!endif|!include .*(Pei|Dxe)\.).*\r\n", "", fdf[start:]
        )
        return {f"{PLATFORM}.dsc": dsc, f"{PLATFORM}.fdf": fdf[:start] + later}


@pytest.fixture(scope="module")
def firmware(
    mirror: None,
    sevkit: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Firmware:
    """Builds from Debian's edk2, with the tools that the default recipe left in the store."""
    folder = tmp_path_factory.mktemp("firmware")
    answer = sevkit("build", "sev-guest:firmware-tools", "--ci")
    assert answer.returncode == 0, answer.stderr
    [place] = re.findall(r"(/\S+/data)\b", answer.stdout + answer.stderr)
    apt = Apt(folder / "apt")
    archives = {}
    for pin in apt.resolve(DebSourcePackage.model_validate({"deb-src": "edk2", "suite": "trixie"})):
        apt.fetch(pin, folder / pin.name, lambda done, total, note: None)
        archives[pin.name] = folder / pin.name
    return Firmware(folder, archives, Path(place))


def test_the_same_bytes_come_from_another_folder_at_another_time(firmware: Firmware) -> None:
    first = firmware.build("first", firmware.tiny())
    with another_clock():
        second = firmware.build("a-longer/path/second", firmware.tiny(), jobs=5)
    for name in ("firmware.fd", "firmware.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    facts = json.loads((first / "firmware.json").read_text())
    assert facts["build"]["series"] == "tiny"
    assert facts["size"] == 1 << 20
    assert facts["kernel_hashes"] is not None


def test_a_file_that_does_not_compile_is_shown_with_the_compilers_words(
    firmware: Firmware,
) -> None:
    changed = firmware.tiny()
    changed[f"{PLATFORM}.dsc"] = changed[f"{PLATFORM}.dsc"].replace(
        "-DMDEPKG_NDEBUG", "-DMDEPKG_NDEBUG -include no-such.h", 1
    )
    with pytest.raises(BuildError, match=r"fatal error: no-such\.h: No such file") as caught:
        firmware.build("broken", changed)
    assert caught.value.log is not None
    assert not list((firmware.folder / "broken" / "out").iterdir())


# --- the same from git ---------------------------------------------------------------------

FOLDERS = (
    *("BaseTools", "CryptoPkg", "EmbeddedPkg", "MdeModulePkg", "MdePkg", "NetworkPkg", "OvmfPkg"),
    *("PcAtChipsetPkg", "SecurityPkg", "ShellPkg", "SourceLevelDebugPkg", "UefiCpuPkg"),
)
NOT_TAKEN = (
    "CryptoPkg/Library/OpensslLib/openssl",
    "CryptoPkg/Library/MbedTlsLib/mbedtls",
    "SecurityPkg/DeviceSecurity/SpdmLib/libspdm",
)
"""Submodules that the tiny platform does without."""
BROTLI, MIPISYST = (
    "MdeModulePkg/Library/BrotliCustomDecompressLib/brotli",
    "MdePkg/Library/MipiSysTLib/mipisyst",
)
BASETOOLS_BROTLI = "BaseTools/Source/C/BrotliCompress/brotli"
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "A"), ("EMAIL", "a@example"), ("DATE", "1700000000 +0000"))
}
OF_GIT = """\
schema = 1
extends = "sev-guest"
name = "of-git"

[sources.tree]
git = "file://{project}/edk2"
commit = "{edk2}"

[sources.brotli]
git = "file://{project}/brotli"
commit = "{brotli}"

[sources.mipisyst]
git = "file://{project}/mipisyst"
commit = "{mipisyst}"

[firmware]
source = "tree"
platform = "{platform}.dsc"
patches = "tiny"
defines = {{ FD_SIZE_1MB = "TRUE" }}
submodules = {{ {submodules} }}

[launch]
measured = false
modes = ["sev"]
"""


def commit(repository: Path, *gitlinks: tuple[str, str]) -> str:
    """The id of a commit of all that is in a folder, with `gitlinks` of path and commit."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", "core.autocrlf=false", *arguments],
            cwd=repository,
            env={**os.environ, **IDENTITY, "GIT_CONFIG_GLOBAL": "/dev/null"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    git("add", "--all", "--force")
    for path, linked in gitlinks:
        git("update-index", "--add", "--cacheinfo", f"160000,{linked},{path}")
    git("commit", "--quiet", "-m", "all")
    return git("rev-parse", "HEAD")


@pytest.fixture(scope="module")
def project(firmware: Firmware) -> Path:
    """A project with edk2 in one git repository and its submodules in others, as upstream."""
    folder = firmware.folder / "project"
    edk2 = folder / "edk2"
    edk2.mkdir(parents=True)
    [orig] = [path for name, path in firmware.archives.items() if ".orig." in name]
    options = [f"--exclude=*/{path}" for path in NOT_TAKEN]
    options += ["--wildcards", "--strip-components=1", *(f"*/{name}/*" for name in FOLDERS)]
    subprocess.run(["tar", "-xf", orig, "-C", edk2, *options], check=True)
    ids = {}
    for path in (BROTLI, MIPISYST):
        name = Path(path).name
        (edk2 / path).rename(folder / name)
        ids[name] = commit(folder / name)
    linked = {BROTLI: "brotli", BASETOOLS_BROTLI: "brotli", MIPISYST: "mipisyst"}
    shutil.rmtree(edk2 / BASETOOLS_BROTLI, ignore_errors=True)
    ids["edk2"] = commit(edk2, *((path, ids[name]) for path, name in linked.items()))
    series = folder / "patches" / "tiny"
    series.mkdir(parents=True)
    (series / "series").write_text("tiny.patch\n")
    (series / "tiny.patch").write_bytes(firmware.patch(firmware.tiny()))
    (folder / "recipes").mkdir()
    submodules = ", ".join(f'"{path}" = "{name}"' for path, name in linked.items())
    text = OF_GIT.format(project=folder, platform=PLATFORM, submodules=submodules, **ids)
    (folder / "recipes" / "of-git.toml").write_text(text)
    return folder


def test_firmware_is_compiled_from_a_commit_and_those_of_its_submodules(
    sevkit: Callable[..., subprocess.CompletedProcess[str]], project: Path
) -> None:
    answer = sevkit("-C", project, "build", "of-git:firmware", "--ci")
    assert answer.returncode == 0, answer.stderr
    [place] = re.findall(r"(/\S+/data)\b", answer.stdout + answer.stderr)
    facts = json.loads((Path(place) / "firmware.json").read_text())
    assert facts["size"] == 1 << 20
    assert facts["build"]["version"] is None
    assert facts["kernel_hashes"] is not None
