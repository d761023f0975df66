# SPDX-License-Identifier: Apache-2.0
"""A sysroot: Debian packages unpacked side by side into one tree, with an index of what is whose.

The tree has the layout of an installed system with a merged /usr (/bin, /lib and their like are
links into /usr), whatever layout the packages have, and no link in it is absolute or climbs out of
it, so that tools that know nothing of roots (a compiler, say) stay inside. No package is ever
installed: maintainer scripts don't run, so what they make (alternatives, caches, users) is not
there.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from sevkit.archive import DebControl, unpack_deb
from sevkit.canonical import Json
from sevkit.errors import BuildError
from sevkit.rootfs.contents import Package
from sevkit.rootfs.copyright import SEE_COPYRIGHT, Licences, read_copyright
from sevkit.rootfs.loader import FolderTree, resolve
from sevkit.stage import Planner, Runner, Stage
from sevkit.toolchain import GROUP, LINKS

VERSION = 2

INDEX = "packages.json"
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_NAMES = {"initramfs": "sysroot", "agent": "agent-sysroot", GROUP: GROUP}


def plan_sysroot(planner: Planner, group: str) -> Stage:
    """The packages of `group` (``initramfs``, ``agent`` or ``toolchain``) and nothing else."""
    params: dict[str, Json] = {"links": LINKS} if group == GROUP else {}
    return Stage(_NAMES[group], "sysroot", VERSION, params, dict(planner.debs(group)))


def build_sysroot(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """Write ``root/`` and ``packages.json``.

    packages.json holds ``packages`` (name → version, source, licence), ``paths`` (guest path of
    each file and link → package) and ``hard_links`` (groups of paths that are one file). Files
    keep of their modes only whether they are executable. Raises `BuildError` when two packages
    hold different things at one path.
    """
    root = out / "root"
    root.mkdir()
    tree = _MergedTree(root)
    controls: dict[str, DebControl] = {}
    for number, (name, deb) in enumerate(sorted(inputs.items())):
        run.progress(number, len(inputs), name)
        place = run.work / str(number)
        place.mkdir()
        control = unpack_deb(deb, place)
        if control.package in controls:
            raise BuildError(f"{stage.name}: {control.package} is in it twice", why=name)
        controls[control.package] = control
        tree.take(place, control.package)
    tree.finish()
    links: Mapping[str, Any] = stage.params
    for place, target in links.get("links", {}).items():
        link = Path(f"{root}{place}")
        if not os.path.lexists(link) and (link.parent / target).exists():
            link.symlink_to(target)
    packages = {name: asdict(_package(control, root)) for name, control in controls.items()}
    index = {"packages": packages, "paths": tree.owners, "hard_links": tree.hard_links()}
    (out / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")


class _MergedTree:
    """A tree that packages are moved into, one after the other.

    What is put into it has no link on its way, and no link in it leads out, whoever follows it.
    """

    def __init__(self, root: Path):
        self._root = root
        self._links: dict[tuple[int, int], list[str]] = {}
        self.owners: dict[str, str] = {}

    def take(self, place: Path, package: str) -> None:
        """Move the unpacked `package` from `place` into the tree."""
        for path in _walk(place):
            guest = _merged(PurePosixPath("/") / path.relative_to(place).as_posix())
            if guest.parent == PurePosixPath("/") and guest.name in _MERGED:
                continue  # the package's own merged-/usr link
            if path.is_dir() and not path.is_symlink():
                self._make_folder(guest, package)
                continue
            self._make_folder(guest.parent, package)
            self._put(path, guest, package)
            self.owners.setdefault(str(guest), package)

    def _place(self, guest: PurePosixPath) -> Path:
        return Path(f"{self._root}{guest}")

    def _make_folder(self, guest: PurePosixPath, package: str) -> None:
        for step in (*reversed(guest.parents), guest):
            folder = self._place(step)
            if not os.path.lexists(folder):
                folder.mkdir()
                folder.chmod(0o755)
            elif folder.is_symlink() or not folder.is_dir():
                raise self._conflict(str(step), package)

    def _put(self, path: Path, guest: PurePosixPath, package: str) -> None:
        target = self._place(guest)
        if path.is_symlink():
            text = _inside(os.readlink(path), guest.parent)  # noqa: PTH115
            if not os.path.lexists(target):
                target.symlink_to(text)
            elif not target.is_symlink() or os.readlink(target) != text:  # noqa: PTH115
                raise self._conflict(str(guest), package)
            return
        if os.path.lexists(target) and (
            target.is_symlink() or not target.is_file() or target.read_bytes() != path.read_bytes()
        ):
            raise self._conflict(str(guest), package)
        status = path.stat()
        if status.st_nlink > 1:
            self._links.setdefault((status.st_dev, status.st_ino), []).append(str(guest))
        path.chmod(0o755 if status.st_mode & 0o100 else 0o644)
        path.replace(target)

    def _conflict(self, guest: str, package: str) -> BuildError:
        return BuildError(
            f"{package} and {self.owners.get(guest, 'another package')} both hold {guest}",
            why="the packages are not meant to be installed together",
            hint="take one of them out of the recipe's debs",
        )

    def finish(self) -> None:
        """Make the links of a merged /usr."""
        for name in _MERGED:
            if (self._root / "usr" / name).is_dir():
                (self._root / name).symlink_to(f"usr/{name}")

    def hard_links(self) -> list[list[str]]:
        """The groups of paths that are one file."""
        return sorted(sorted(group) for group in self._links.values() if len(group) > 1)


def _walk(place: Path) -> Iterator[Path]:
    """Everything below `place`, a folder before what is in it, in the order of the names."""
    for name in sorted(os.listdir(place)):  # noqa: PTH208
        path = place / name
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _inside(text: str, folder: PurePosixPath) -> str:
    """The text of a link in the guest's `folder`, a path without links, that can't climb out.

    No absolute one, and ``..`` stands at its beginning alone, at most as often as `folder` is deep.
    """
    return os.path.relpath(_merged(PurePosixPath(os.path.normpath(folder / text))), folder)


def _merged(path: PurePosixPath) -> PurePosixPath:
    """Where a merged /usr has `path`."""
    parts = path.parts
    if len(parts) > 2 and parts[1] in _MERGED:
        return PurePosixPath("/usr", *parts[1:])
    return path


def _package(control: DebControl, root: Path) -> Package:
    licences = _licences(control.package, root)
    return Package(
        name=control.package,
        version=control.version,
        source=control.source,
        licence=licences.licence,
        other_licences=licences.others,
    )


def _licences(package: str, root: Path) -> Licences:
    tree = FolderTree(root, {})
    place = resolve(tree, f"/usr/share/doc/{package}/copyright")
    if place is None:
        return Licences(SEE_COPYRIGHT)
    return read_copyright(bytes(tree.read(place.real)).decode("utf-8", "replace"))
