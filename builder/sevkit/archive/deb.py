# SPDX-License-Identifier: Apache-2.0
"""A Debian binary package: an ar archive of two others, what it is and what it holds (deb(5))."""

import re
from dataclasses import dataclass
from pathlib import Path

from sevkit.archive.reader import Slice, opened
from sevkit.errors import SourceError

_MEMBERS = 1000
_CONTROL_BYTES = 1 << 20
_CONTROL_ARCHIVE_BYTES = 64 << 20
_AR_HEADER = re.compile(rb"([!-~][ -~]{15})[ -~]{32}([0-9]{1,10}) *`\n")
"""ar(5): name, times, owners and mode, size, end; 60 bytes."""


@dataclass(frozen=True)
class DebControl:
    """What a binary package says of itself (deb-control(5))."""

    package: str
    version: str
    architecture: str
    source: str
    """Name of the source package."""


def is_deb(path: Path) -> bool:
    """Whether a file starts as a Debian package does."""
    with path.open("rb") as file:
        return file.read(21) == b"!<arch>\ndebian-binary"


def deb_parts(deb: Path) -> dict[str, Slice]:
    """Where in a package its ``control`` and ``data`` archives are.

    Raises `SourceError` for what is no package, or damaged.
    """
    found: dict[str, Slice] = {}
    end = deb.stat().st_size
    if is_deb(deb):
        with deb.open("rb") as file:
            position = 8
            for _ in range(_MEMBERS):
                if position >= end or len(found) == 2:
                    break
                file.seek(position)
                header = _AR_HEADER.fullmatch(file.read(60))
                if header is None or position + 60 + int(header[2]) > end:
                    raise SourceError(f"{deb.name} is damaged or cut off", hint="fetch it again")
                part = Slice(deb, position + 60, int(header[2]))
                for name in ("control", "data"):
                    if header[1].startswith(f"{name}.tar".encode()):
                        if name in found:
                            raise SourceError(f"{deb.name} holds {name}.tar twice")
                        found[name] = part
                position += 60 + part.size + part.size % 2
    if len(found) < 2:
        raise SourceError(f"{deb.name} is no Debian package, or not all of one")
    return found


def read_control(deb: Path, part: Slice) -> DebControl:
    """What the ``control`` archive of a package says. Raises `SourceError`."""
    text = b""
    with opened(part, _CONTROL_ARCHIVE_BYTES) as reader:
        for entry in reader:
            if entry.name.removeprefix(b"./") == b"control":
                for _, block in reader.blocks():
                    text += block
                    if len(text) > _CONTROL_BYTES:
                        raise SourceError(f"{deb.name}: its control file is too large")
                break
    fields: dict[str, str] = dict(
        re.findall(r"^([A-Za-z-]+):[ \t]*(.*?)[ \t]*$", text.decode("utf-8", "replace"), re.M)
    )
    missing = [name for name in ("Package", "Version", "Architecture") if not fields.get(name)]
    if missing:
        raise SourceError(f"{deb.name}: its control file lacks {', '.join(missing)}")
    return DebControl(
        package=fields["Package"],
        version=fields["Version"],
        architecture=fields["Architecture"],
        source=(fields.get("Source") or fields["Package"]).partition(" ")[0],
    )
