# SPDX-License-Identifier: Apache-2.0
"""What one kernel tree leaves for the next: that kbuild can tell what it must compile again."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from sevkit.canonical import Json
from sevkit.sandbox import Processes, SandboxRunner
from sevkit.stage import Stage
from sevkit.stages.kernel_objects import Objects
from sevkit.stages.kernel_source import SourceTree

SOURCES = ("Makefile", "kernel/fork.c", "drivers/virtio/virtio_ring.c", "tools/objtool/check.c")


@dataclass
class Trees:
    """Kernel trees of one archive, each with its own patches."""

    folder: Path
    leftovers: Path = field(init=False)

    def __post_init__(self) -> None:
        self.leftovers = self.folder / "leftovers"
        self.leftovers.mkdir()

    def tree(self, name: str, **patches: list[str]) -> Objects:
        """A tree as it is unpacked, in the folder `name`; `patches` are digest → files."""
        tree = self.folder / name / "source"
        for path in SOURCES:
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text("/* C */\n")
        return Objects(tree, self.leftovers, "slot", patches, frozenset(SOURCES))

    def runner(self, name: str) -> SandboxRunner:
        work = self.folder / name / "work"
        work.mkdir(exist_ok=True, parents=True)
        return SandboxRunner(
            title="kernel",
            work=work,
            inputs={},
            log=work / "log",
            jobs=1,
            confined=False,
            processes=Processes(),
            on_progress=lambda done, total, note: None,
        )


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    """Trees that share a folder for what they leave."""
    return Trees(tmp_path)


def compile_one(objects: Objects, source: str, *, command_first: bool = False) -> Path:
    """What kbuild leaves of a source file: the object, then the command that made it."""
    made = objects.tree / Path(source).with_suffix(".o")
    command = made.with_name(f".{made.name}.cmd")
    for path in (command, made) if command_first else (made, command):
        path.write_text(f"gcc -c {objects.tree}/{source}\n")
        os.utime(path, (1000, 1000 if path is made and not command_first else 1001))
    if command_first:
        os.utime(made, (1002, 1002))
    return made


def test_objects_come_to_the_next_tree_newer_than_its_sources(trees: Trees) -> None:
    first = trees.tree("first")
    made = compile_one(first, "kernel/fork.c")
    first.leave(trees.runner("first"))
    second = trees.tree("second")
    assert second.take_up(trees.runner("second"))
    there = second.tree / made.relative_to(first.tree)
    assert there.read_bytes() == made.read_bytes()
    assert there.stat().st_mtime == 1000
    assert all((second.tree / name).stat().st_mtime < 1000 for name in SOURCES)


def test_nothing_comes_to_a_tree_of_another_archive(trees: Trees) -> None:
    first = trees.tree("first")
    compile_one(first, "kernel/fork.c")
    first.leave(trees.runner("first"))
    other = replace(trees.tree("other"), slot="other")
    assert not other.take_up(trees.runner("other"))
    assert not (other.tree / "kernel/fork.o").exists()
    assert trees.tree("same").take_up(trees.runner("same"))


def test_objects_fit_only_what_is_compiled_in_the_same_surroundings(tmp_path: Path) -> None:
    """With the same source, compiler and sandbox; another series goes on from them."""
    source = SourceTree(tmp_path, "6.12", (), ())
    params: dict[str, Json] = {"member": "linux.tar.xz", "tools": {"gcc": "gcc 12"}, "series": "a"}
    inputs = {"source": "blob:" + "1" * 64}

    def slot(params: dict[str, Json], inputs: dict[str, str]) -> str:
        return Objects.of(Stage("kernel", "kernel", 1, params, inputs), source, tmp_path).slot

    confined = slot({**params}, inputs)
    assert slot({**params, "series": "b"}, inputs) == confined
    others = {
        slot({**params, "sandbox": "none"}, inputs),
        slot({**params, "tools": {"gcc": "gcc 13"}}, inputs),
        slot({**params}, {**inputs, "toolchain": "stage:" + "2" * 64}),
        slot({**params}, {**inputs, "toolchain": "stage:" + "3" * 64}),
        slot({**params}, {"source": "blob:" + "4" * 64}),
    }
    assert len(others - {confined}) == 5


def test_only_what_one_of_the_series_touches_is_newer_than_objects(trees: Trees) -> None:
    both, old, new = (
        ["Makefile"],
        ["kernel/fork.c", "kernel/gone.c"],
        ["drivers/virtio/virtio_ring.c"],
    )
    first = trees.tree("first", b0=both, a1=old)
    compile_one(first, "kernel/fork.c")
    first.leave(trees.runner("first"))
    second = trees.tree("second", b0=both, c2=new)
    assert second.take_up(trees.runner("second"))
    newer = {name for name in SOURCES if (second.tree / name).stat().st_mtime > 1002}
    assert newer == {"kernel/fork.c", "drivers/virtio/virtio_ring.c"}


def test_an_object_that_may_be_half_written_is_left_out(trees: Trees) -> None:
    first = trees.tree("first")
    compile_one(first, "kernel/fork.c")
    compile_one(first, "drivers/virtio/virtio_ring.c", command_first=True)
    (first.tree / "kernel/never-ended.o").write_bytes(b"\x7fEL")
    first.leave(trees.runner("first"))
    second = trees.tree("second")
    assert second.take_up(trees.runner("second"))
    assert (second.tree / "kernel/fork.o").exists()
    assert not (second.tree / "drivers/virtio/virtio_ring.o").exists()
    assert not (second.tree / "kernel/never-ended.o").exists()


def test_what_a_tree_is_given_stays_with_it(trees: Trees) -> None:
    first = trees.tree("first")
    compile_one(first, "kernel/fork.c")
    for name in (".config", "initramfs.cpio.zstd", "vmlinux", "vmlinux.o"):
        (first.tree / name).write_text("of the first\n")
    first.leave(trees.runner("first"))
    second = trees.tree("second")
    (second.tree / ".config").write_text("of the second\n")
    assert second.take_up(trees.runner("second"))
    assert (second.tree / ".config").read_text() == "of the second\n"
    assert not list(second.tree.glob("vmlinux*"))
    assert not list(second.tree.glob("initramfs*"))
    assert (second.tree / "kernel/fork.o").exists()


def test_the_commands_of_tools_name_the_tree_that_they_are_in(trees: Trees) -> None:
    first = trees.tree("first")
    compile_one(first, "tools/objtool/check.c")
    first.leave(trees.runner("first"))
    second = trees.tree("a-longer/second")
    assert second.take_up(trees.runner("a-longer/second"))
    command = second.tree / "tools/objtool/.check.o.cmd"
    assert command.read_text() == f"gcc -c {second.tree}/tools/objtool/check.c\n"
    assert command.stat().st_mtime == 1001


def test_damaged_objects_are_removed_and_not_used(trees: Trees) -> None:
    first = trees.tree("first")
    compile_one(first, "kernel/fork.c")
    first.leave(trees.runner("first"))
    [kept] = trees.leftovers.iterdir()
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    second = trees.tree("second")
    assert not second.take_up(trees.runner("second"))
    assert not (second.tree / "kernel/fork.o").exists()
    assert not kept.exists()


def test_what_is_left_takes_the_place_of_what_was_left_before(trees: Trees) -> None:
    first = trees.tree("first")
    compile_one(first, "kernel/fork.c")
    first.leave(trees.runner("first"))
    compile_one(first, "drivers/virtio/virtio_ring.c")
    first.leave(trees.runner("first"))
    assert len(list(trees.leftovers.iterdir())) == 1
    second = trees.tree("second")
    assert second.take_up(trees.runner("second"))
    assert (second.tree / "drivers/virtio/virtio_ring.o").exists()


def test_objects_that_another_kernel_replaces_meanwhile_do_no_harm(
    trees: Trees, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by name, then gone before they are opened: as if there had been none."""
    first = trees.tree("first")
    compile_one(first, "kernel/fork.c")
    first.leave(trees.runner("first"))
    [left] = trees.leftovers.iterdir()
    second = trees.tree("second")
    monkeypatch.setattr(
        type(second.place), "glob", lambda place, pattern: [left.with_name("gone"), left]
    )
    assert second.take_up(trees.runner("second"))
    left.unlink()
    assert not trees.tree("third").take_up(trees.runner("third"))
