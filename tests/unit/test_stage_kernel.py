# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sevkit.canonical import Json
from sevkit.errors import RecipeError
from sevkit.stage import Stage
from sevkit.stages.kconfig_tree import plan_kconfig_tree
from sevkit.stages.kernel import _OBJECT_MADE, TOOLS, merged_config, plan_kernel

PATCH = """\
Description: {description}
Author: A. Person <person@example.org>
Forwarded: no
Last-Update: 2024-05-31

--- a/Makefile
+++ b/Makefile
@@ -1 +1 @@
-VERSION = 6
+VERSION = 7
"""
FRAGMENTS = {
    "base": "# the bus\nCONFIG_PCI=y\n",
    "sev": "# encrypted memory\nCONFIG_AMD_MEM_ENCRYPT=y\n",
}


class FakePlanner:
    """A project in a folder; references are made of contents, as the real planner makes them."""

    def __init__(self, folder: Path, **changes: Any):
        self.folder = folder
        self.versions = {"gcc": "gcc 12", "ld": "ld 2.40", "gzip": "gzip 1", "zstd": "zstd 1.5"}
        source = {"deb": "linux-source-6.12", "member": "usr/src/linux.tar.xz"}
        self.recipe: Any = SimpleNamespace(
            name="test",
            sources={"linux": SimpleNamespace(**(source | changes.get("source", {})))},
            kernel=SimpleNamespace(
                source="linux",
                patches=changes.get("patches", "series"),
                configs=changes.get("configs", ("base", "sev")),
                cmdline=changes.get("cmdline", ()),
            ),
            initramfs=SimpleNamespace(
                compression=changes.get("compression", "zstd"),
                placement=changes.get("placement", "separate"),
            ),
        )

    def source(self, name: str) -> str:
        return f"blob:{name}"

    def debs(self, group: str) -> Mapping[str, str]:
        raise AssertionError(f"the kernel needs no packages, not even {group}")

    def local(self, path: Path) -> str:
        return f"blob:{path.read_text()}"

    def stage(self, name: str) -> str:
        return f"stage:{name}"

    def fragment(self, name: str) -> Path:
        return self.folder / f"{name}.config"

    def patches(self, name: str) -> Path:
        return self.folder / name

    def recorded(self) -> Mapping[str, Json]:
        return {}

    def provenance(self) -> Sequence[Mapping[str, Json]]:
        raise AssertionError("where sources come from does not shape the kernel")

    def tool(self, name: str) -> str:
        return self.versions[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FRAGMENTS.items():
        (tmp_path / f"{name}.config").write_text(text)
    series = tmp_path / "series"
    series.mkdir()
    (series / "series").write_text("one.patch\n")
    (series / "one.patch").write_text(PATCH.format(description="one"))
    return tmp_path


def plan(folder: Path, **changes: Any) -> Stage:
    return plan_kernel(FakePlanner(folder, **changes))


def edit(name: str, text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(text)

    return change


@pytest.mark.parametrize(
    "change",
    [
        {"configs": ("sev", "base")},
        {"configs": ("base",)},
        {"patches": None},
        {"compression": "lz4"},
        {"placement": "builtin"},
        {"source": {"member": "usr/src/other.tar.xz"}},
    ],
)
def test_every_choice_that_shapes_the_kernel_changes_its_key(
    folder: Path, change: dict[str, Any]
) -> None:
    assert plan(folder).key == plan(folder).key
    assert plan(folder, **change).key != plan(folder).key


@pytest.mark.parametrize(
    "change",
    [
        edit("base.config", "# the bus, really\nCONFIG_PCI=y\n"),
        edit("series/one.patch", PATCH.format(description="another")),
        edit("series/series", "one.patch -p1\ntwo.patch\n"),
    ],
)
def test_every_file_that_shapes_the_kernel_changes_its_key(
    folder: Path, change: Callable[[Path], None]
) -> None:
    (folder / "series" / "two.patch").write_text(PATCH.format(description="two"))
    before = plan(folder).key
    change(folder)
    assert plan(folder).key != before


def test_what_does_not_shape_the_kernel_leaves_its_key_alone(folder: Path) -> None:
    before = plan(folder)
    (folder / "series" / "README.md").write_text("about the series")
    assert plan(folder, cmdline=("console=ttyS0",)).key == before.key
    moved = folder / "moved"
    folder.rename(folder.with_name("elsewhere"))
    folder.with_name("elsewhere").rename(folder)
    assert plan(folder).key == before.key
    assert str(moved.parent) not in str(before.record())


def test_the_compiler_and_the_compressor_of_the_image_are_part_of_the_key(folder: Path) -> None:
    assert plan(folder).params["tools"] == {"gcc": "gcc 12", "ld": "ld 2.40", "gzip": "gzip 1"}
    (folder / "base.config").write_text("# smaller\nCONFIG_KERNEL_ZSTD=y\n")
    assert plan(folder).params["tools"] == {"gcc": "gcc 12", "ld": "ld 2.40", "zstd": "zstd 1.5"}


def test_only_a_builtin_initramfs_is_an_input(folder: Path) -> None:
    assert "initramfs" not in plan(folder).inputs
    assert plan(folder, placement="builtin").inputs["initramfs"] == "stage:initramfs"


def test_the_problems_of_all_fragments_are_reported_together(folder: Path) -> None:
    (folder / "base.config").write_text("CONFIG_PCI=y\n")
    (folder / "sev.config").write_text("# why\nCONFIG_SEV=maybe\n# why\nCONFIG_X=n\n")
    with pytest.raises(RecipeError) as caught:
        plan(folder)
    text = str(caught.value)
    assert "3 problems" in text
    assert "base.config:1: CONFIG_PCI has no reason" in text
    assert "sev.config:2: CONFIG_SEV: 'maybe'" in text


def test_a_malformed_series_is_found_while_planning(folder: Path) -> None:
    (folder / "series" / "series").write_text("gone.patch\n")
    with pytest.raises(RecipeError, match=r"gone\.patch does not exist"):
        plan(folder)


def test_a_package_without_a_member_is_no_kernel_source(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"sources\.linux: a package is no kernel source"):
        plan(folder, source={"member": None})
    assert plan(folder, source={"deb": None, "member": None}).params["member"] is None


@pytest.mark.parametrize(
    ("compression", "symbol"),
    [("zstd", "RD_ZSTD"), ("lz4", "RD_LZ4"), ("gzip", "RD_GZIP"), ("xz", "RD_XZ")],
)
def test_the_kernel_must_be_able_to_unpack_the_initramfs(compression: str, symbol: str) -> None:
    merged = merged_config({"initramfs": {"compression": compression, "placement": "separate"}}, {})
    assert merged.demands[symbol].where == f"initramfs.compression = {compression}"
    assert merged.demands[symbol].strength == "required"
    plain = merged_config({"initramfs": {"compression": "none", "placement": "separate"}}, {})
    assert list(plain.demands) == ["BLK_DEV_INITRD"]


def test_a_fragment_may_not_take_away_what_the_initramfs_needs(folder: Path) -> None:
    (folder / "base.config").write_text("# small\n# CONFIG_RD_ZSTD is not set\n")
    assert plan(folder, compression="lz4")
    with pytest.raises(RecipeError) as caught:
        plan(folder)
    assert "initramfs.compression = zstd" in str(caught.value)
    assert "base.config:2" in str(caught.value)


def test_a_builtin_initramfs_is_named_without_a_path_of_this_machine() -> None:
    merged = merged_config({"initramfs": {"compression": "zstd", "placement": "builtin"}}, {})
    assert 'CONFIG_INITRAMFS_SOURCE="initramfs.cpio.zstd"\n' in merged.text
    assert "CONFIG_INITRAMFS_COMPRESSION_NONE=y\n" in merged.text


def test_the_tree_for_questions_depends_on_source_and_patches_alone(folder: Path) -> None:
    before = plan_kconfig_tree(FakePlanner(folder))
    other = plan_kconfig_tree(FakePlanner(folder, configs=("base",), compression="lz4"))
    assert other.key == before.key
    assert plan_kconfig_tree(FakePlanner(folder, patches=None)).key != before.key


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("  CC      drivers/virtio/virtio.o", "drivers/virtio/virtio.o"),
        ("  AS      arch/x86/entry/entry_64.o", "arch/x86/entry/entry_64.o"),
        ("  CC [M]  fs/fuse/virtiofs.o", "fs/fuse/virtiofs.o"),
        ("  LD      vmlinux", None),
        ("drivers/virtio/virtio.c:3: error: no.o", None),
    ],
)
def test_a_line_of_the_build_that_made_an_object_is_understood(line: str, path: str | None) -> None:
    match = _OBJECT_MADE.match(line)
    assert (match[1] if match else None) == path


def test_every_tool_is_named_with_a_package() -> None:
    assert TOOLS["ld"] == "binutils"
    assert all(package and "/" not in package for package in TOOLS.values())
