# SPDX-License-Identifier: Apache-2.0
"""The root file system of a container, as a user names it, made ready for a guest.

A folder is shared by 9p; an image becomes a file system that the guest checks block by block. The
user's configuration goes over the agent's port. Never runs anything of either.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sevkit.canonical import Json
from sevkit.errors import RecipeError
from sevkit.guest.launch import Accelerator
from sevkit.guest.session import Asked
from sevkit.oci.config import Accounts, Overrides, runtime_config

_KINDS = ("docker-archive", "oci", "dir")


@dataclass(frozen=True)
class Prepared:
    """What a guest is given: a `folder` to share, or an `image` to attach with its `cmdline`.

    `config` is the OCI runtime configuration; None: the image holds it.
    """

    name: str
    folder: Path | None = None
    image: Path | None = None
    cmdline: str = ""
    config: Mapping[str, Json] | None = None
    memory_bytes: int | None = None
    """The limit of the container's memory, for which the guest needs room."""

    def asked(self, *, memory: str | None = None, accel: Accelerator | None = None) -> Asked:
        """What it needs of a guest; `memory` is what --guest-memory says."""
        return Asked(
            memory=memory,
            memory_flag="--guest-memory",
            room_for_bytes=self.memory_bytes or 0,
            accel=accel,
            rootfs=self.folder,
            disk=self.image,
            more_cmdline=self.cmdline,
        )

    def record(self) -> dict[str, str]:
        """The same for programs."""
        return {"name": self.name, "kind": "9p" if self.image is None else "verity"}


@contextlib.contextmanager
def prepare(name: str, overrides: Overrides, *, sealed: bool = False) -> Iterator[Prepared]:
    """Make the root file system called `name` ready; it stays so for the `with` block.

    `sealed`: what the image itself says runs, and the guest takes nothing else from its host.

    Raises `RecipeError` for a name that is none and for a configuration that can't be made,
    `SourceError` for an image that is damaged.
    """
    kind, colon, place = name.partition(":")
    if not colon or kind not in _KINDS or not place:
        raise RecipeError(
            f"'{name}' names no root file system",
            hint="docker-archive:FILE, oci:FOLDER, or dir:FOLDER",
        )
    if sealed and (kind == "dir" or overrides != Overrides()):
        raise RecipeError(
            "--sealed: the image alone says what runs, and is measured",
            why="a folder, a command and flags of the container would come from the host",
            hint="leave them out, or put them into the image's configuration",
        )
    if kind == "dir":
        folder = Path(place).absolute()
        if not folder.is_dir():
            raise RecipeError(f"{name}: {place} is not a folder")
        config = runtime_config({}, overrides, accounts_of(folder))
        yield Prepared(name, folder=folder, config=config, memory_bytes=overrides.memory_bytes)
        return
    from sevkit.oci.image import find_image
    from sevkit.oci.workload import SEALED, make

    with tempfile.TemporaryDirectory(prefix="sevkit-workload-") as scratch:
        work, file = Path(scratch) / "work", Path(scratch) / "workload.img"
        work.mkdir()
        image = find_image(kind, place, work)
        made = make(image, file)
        yield Prepared(
            name,
            image=file,
            cmdline=made.verity.kernel_word() + (f" {SEALED}" if sealed else ""),
            config=None if sealed else runtime_config(image.config, overrides, made.accounts),
            memory_bytes=overrides.memory_bytes,
        )


def accounts_of(folder: Path) -> Accounts:
    """The users and groups that a root file system knows; never of the host, whatever it links."""
    texts = []
    for each in ("passwd", "group"):
        path = folder / "etc" / each
        inside = path.resolve().is_relative_to(folder.resolve())
        texts.append(path.read_text(errors="replace") if inside and path.is_file() else "")
    return Accounts(*texts)
