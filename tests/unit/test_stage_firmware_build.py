# SPDX-License-Identifier: Apache-2.0
"""Firmware from source: what its keys cover, and how edk2's tree is put together."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sevkit.canonical import Json
from sevkit.errors import BuildError, RecipeError
from sevkit.recipe.model import DebSource, DebSourcePackage, GitSource
from sevkit.stage import Stage
from sevkit.stages.edk2 import _expected_modules, _fix_cookies, plan_edk2
from sevkit.stages.edk2_source import SourceTree, prepare_source
from sevkit.stages.edk2_tools import plan_edk2_tools

COMMIT = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
PATCH = """\
Description: {name}
Author: A. Person <person@example.org>
Forwarded: no
Last-Update: 2024-05-31

--- a/{path}
+++ b/{path}
@@ -1 +1 @@
-{old}
+{new}
"""
FOREIGN = "\n".join(PATCH.splitlines()[5:]) + "\n"
"""As a distribution has it: no header of ours."""


def series(folder: Path, *patches: str) -> Path:
    """A series in `folder` of patches with these texts."""
    folder.mkdir(parents=True)
    names = [f"{number:04}.patch" for number, _ in enumerate(patches, 1)]
    for name, text in zip(names, patches, strict=True):
        (folder / name).write_text(text)
    (folder / "series").write_text("".join(f"{name}\n" for name in names))
    return folder


def archive(path: Path, files: Mapping[str, str]) -> Path:
    """A compressed tar archive of files with these texts."""
    with tarfile.open(path, "w:xz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return path


class FakePlanner:
    """A project in a folder; references are made of contents, as the real planner makes them."""

    def __init__(self, folder: Path, sources: Mapping[str, Any] | None = None, **changes: Any):
        self.folder = folder
        self.files = {"edk2": {"e.orig.tar.xz": "blob:e", "e.debian.tar.xz": "blob:d"}}
        self.files["openssl"] = {"openssl.tar": f"git:{COMMIT}"}
        facts: dict[str, Any] = {
            "source": "edk2",
            "platform": "OvmfPkg/AmdSev/AmdSevX64.dsc",
            "target": "RELEASE",
            "toolchain": "GCC5",
            "defines": {},
            "flash_device": "OVMF",
            "patches": None,
            "submodules": {},
        }
        self.recipe: Any = SimpleNamespace(
            name="test",
            sources={
                "edk2": DebSourcePackage(**{"deb-src": "edk2"}),
                "openssl": GitSource(git="https://git.example/o.git", commit=COMMIT),
                **(sources or {}),
            },
            firmware=SimpleNamespace(**facts | changes),
            launch=SimpleNamespace(modes=("sev", "sev-snp")),
        )

    def source_files(self, name: str) -> Mapping[str, str]:
        return self.files[name]

    def local(self, path: Path) -> str:
        return f"blob:{path.read_text()}"

    def stage(self, name: str) -> str:
        assert name == "firmware-tools"
        return "stage:" + plan_edk2_tools(self).key  # type: ignore[arg-type]

    def patches(self, name: str) -> Path:
        return self.folder / name

    def tool(self, name: str) -> str:
        return f"{name} 1.0"


def keys(planner: FakePlanner) -> tuple[str, str]:
    """The key of the tools, and that of the firmware."""
    return plan_edk2_tools(planner).key, plan_edk2(planner).key  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"defines": {"FD_SIZE_1MB": "TRUE"}},
        {"target": "DEBUG"},
        {"toolchain": "GCC"},
        {"platform": "OvmfPkg/OvmfPkgX64.dsc"},
        {"flash_device": "OVMF_CODE"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_platforms_of_one_source_share_their_tools(tmp_path: Path, change: dict[str, Any]) -> None:
    tools, firmware = keys(FakePlanner(tmp_path))
    other_tools, other = keys(FakePlanner(tmp_path, **change))
    assert other_tools == tools
    assert other != firmware


def test_a_patch_makes_other_tools_only_when_it_changes_them(tmp_path: Path) -> None:
    series(tmp_path / "driver", PATCH.format(name="d", path="OvmfPkg/a.c", old="a", new="b"))
    series(tmp_path / "tool", PATCH.format(name="t", path="BaseTools/a.c", old="a", new="b"))
    plain = keys(FakePlanner(tmp_path))
    driver, tool = (keys(FakePlanner(tmp_path, patches=name)) for name in ("driver", "tool"))
    assert (driver[0] == plain[0], driver[1] == plain[1]) == (True, False)
    assert (tool[0] == plain[0], tool[1] == plain[1]) == (False, False)


def test_another_submodule_changes_both(tmp_path: Path) -> None:
    plain = keys(FakePlanner(tmp_path))
    filled = keys(FakePlanner(tmp_path, submodules={"CryptoPkg/openssl": "openssl"}))
    assert not set(plain) & set(filled)


def test_the_order_in_which_macros_are_written_changes_nothing(tmp_path: Path) -> None:
    one, other = {"A": "1", "B": "2"}, {"B": "2", "A": "1"}
    assert keys(FakePlanner(tmp_path, defines=one)) == keys(FakePlanner(tmp_path, defines=other))


def test_a_binary_package_is_no_tree(tmp_path: Path) -> None:
    assert keys(FakePlanner(tmp_path))
    with pytest.raises(RecipeError, match=r"sources\.edk2: is no source tree") as caught:
        keys(FakePlanner(tmp_path, {"edk2": DebSource(deb="ovmf")}))
    assert "deb-src" in caught.value.hint


# --- the tree ------------------------------------------------------------------------------


class FakeRun:
    """Runs the commands of a stage without a sandbox: they are patch(1) alone."""

    def __init__(self, work: Path):
        self.work = work
        self.jobs = 1
        self.notes: list[str] = []

    def progress(self, done: int, total: int | None, note: str = "") -> None:
        self.notes.append(note)

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
        reading: Sequence[Path] = (),
    ) -> None:
        import subprocess

        assert argv[0] == "patch"
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            if on_line is not None:
                on_line(line)
        if done.returncode != 0:
            raise BuildError("patch failed", why=done.stdout)


TREE = {
    "edk2-1/BaseTools/Source/C/main.c": "tool\n",
    "edk2-1/OvmfPkg/a.c": "upstream\n",
    "edk2-1/CryptoPkg/Library/OpensslLib/openssl/test/huge.c": "test\n",
    "edk2-1/CryptoPkg/Library/OpensslLib/openssl/crypto/sha.c": "sha\n",
}
DEBIAN = {
    "debian/changelog": "edk2 (1-2+deb13u1) trixie; urgency=medium\n\n  * made up\n",
    "debian/patches/series": "first.patch\n",
    "debian/patches/first.patch": FOREIGN.format(path="OvmfPkg/a.c", old="upstream", new="debian"),
}


def prepared(
    place: Path,
    archives: Mapping[str, Mapping[str, Path]],
    ours: Sequence[str] = (),
) -> SourceTree:
    """The tree that the stages see, of archives by submodule and name, and patches of ours."""
    params: dict[str, Json] = {"trees": {part: sorted(of) for part, of in archives.items()}}
    inputs = {
        f"source/{part}/{name}": path for part, of in archives.items() for name, path in of.items()
    }
    if ours:
        folder = series(place / "series", *ours)
        names = [path.name for path in sorted(folder.glob("*.patch"))]
        params["series"] = {"name": "ours", "patches": [[name, 1] for name in names]}
        inputs |= {f"patch/{name}": folder / name for name in names}
    (place / "work").mkdir(parents=True)
    references = {
        role: f"{'git' if path.suffix == '.tar' else 'blob'}:" for role, path in inputs.items()
    }
    stage = Stage("firmware", "edk2", 1, params, references)
    return prepare_source(stage, inputs, FakeRun(place / "work"))  # type: ignore[arg-type]


def source_package(place: Path, debian: Mapping[str, str] = DEBIAN) -> dict[str, Path]:
    """The two archives of a Debian source package."""
    return {
        "e_1.orig.tar.xz": archive(place / "e_1.orig.tar.xz", TREE),
        "e_1-2.debian.tar.xz": archive(place / "e_1-2.debian.tar.xz", debian),
    }


def test_debians_own_patches_come_before_ours(tmp_path: Path) -> None:
    ours = PATCH.format(name="ours", path="OvmfPkg/a.c", old="debian", new="ours")
    tree = prepared(tmp_path, {".": source_package(tmp_path)}, [ours])
    assert (tree.path / "OvmfPkg" / "a.c").read_text() == "ours\n"
    assert (tree.version, tree.own) == ("1-2+deb13u1", ("first.patch",))
    assert tree.series is not None
    assert [patch.name for patch in tree.series.patches] == ["0001.patch"]


def test_tests_of_embedded_libraries_are_left_out(tmp_path: Path) -> None:
    tree = prepared(tmp_path, {".": source_package(tmp_path)}).path
    openssl = tree / "CryptoPkg" / "Library" / "OpensslLib" / "openssl"
    assert (openssl / "crypto" / "sha.c").is_file()
    assert not (openssl / "test").exists()


def test_a_patch_that_does_not_fit_is_named_with_the_version(tmp_path: Path) -> None:
    ours = PATCH.format(name="ours", path="OvmfPkg/a.c", old="upstream", new="ours")
    with pytest.raises(BuildError, match=r"patch 0001\.patch does not apply to edk2 1-2\+deb13u1"):
        prepared(tmp_path, {".": source_package(tmp_path)}, [ours])


def test_a_git_tree_gets_its_submodules_and_no_patches_of_debian(tmp_path: Path) -> None:
    tree = {name.removeprefix("edk2-1/"): text for name, text in TREE.items() if "ssl" not in name}
    main = archive(tmp_path / "edk2.tar", {**tree, "CryptoPkg/README": "here\n"})
    part = archive(tmp_path / "openssl.tar", {"crypto/sha.c": "of the submodule\n"})
    made = prepared(tmp_path, {".": {"edk2.tar": main}, "CryptoPkg/openssl": {"o.tar": part}})
    assert (made.path / "CryptoPkg/openssl/crypto/sha.c").read_text() == "of the submodule\n"
    assert (made.version, made.own, made.series) == (None, (), None)
    again = {".": {"edk2.tar": main}, "OvmfPkg": {"o.tar": part}}
    with pytest.raises(BuildError, match="OvmfPkg in the firmware's source is not empty"):
        prepared(tmp_path / "again", again)


def test_what_is_no_edk2_is_refused(tmp_path: Path) -> None:
    other = archive(tmp_path / "other.tar.xz", {"linux-6.12/Makefile": "VERSION = 6\n"})
    with pytest.raises(BuildError, match=r"no tree of edk2[\s\S]*BaseTools/Source/C"):
        prepared(tmp_path, {".": {"other.tar.xz": other}})


def test_two_trees_at_once_are_refused(tmp_path: Path) -> None:
    both = {name: archive(tmp_path / name, TREE) for name in ("a.tar.xz", "b.tar.xz")}
    with pytest.raises(BuildError, match=r"has 2 trees[\s\S]*a\.tar\.xz, b\.tar\.xz"):
        prepared(tmp_path, {".": both})


# --- the build -----------------------------------------------------------------------------


def test_modules_are_expected_when_no_macro_decides(tmp_path: Path) -> None:
    (tmp_path / "P.dsc").write_text("[Defines]\n  FLASH_DEFINITION = P.fdf\n")
    (tmp_path / "P.fdf").write_text(
        "INF  A/A.inf\nINF  RuleOverride=RESET_VECTOR B/B.inf\n!if $(X) == TRUE\nINF C/C.inf\n"
        "!ifdef Y\n!endif\nINF D/D.inf\n!endif\n!include More.inc\nINF E/E.inf\n!include gone.inc\n"
    )
    (tmp_path / "More.inc").write_text("INF  F/F.inf\n")
    expected = list(_expected_modules(tmp_path, tmp_path / "P.dsc"))
    assert expected == ["A/A.inf", "B/B.inf", "F/F.inf", "E/E.inf"]


def test_cookies_are_not_drawn_at_random(tmp_path: Path) -> None:
    for name in ("one", "other"):
        _fix_cookies(tmp_path / name)
    for bits in (32, 64):
        one, other = (
            json.loads((tmp_path / name / f"StackCookieValues{bits}.json").read_text())
            for name in ("one", "other")
        )
        assert one == other
        assert len(set(one)) == 100
        assert all(0 < value < 1 << bits for value in one)
        assert max(one) > 1 << bits - 4
