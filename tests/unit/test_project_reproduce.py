# SPDX-License-Identifier: Apache-2.0
"""How two files, and two images, are held against each other."""

from pathlib import Path

import pytest

from sevkit.project.reproduce import Comparison, Reproduction, compared

BLOCK = 1 << 20


def write(folder: Path, **files: bytes) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"", b"", None),
        (b"a" * (2 * BLOCK), b"a" * (2 * BLOCK), None),
        (b"abc", b"abd", "differs from byte 2 on (3 and 3 bytes)"),
        (b"abc", b"abcd", "differs from byte 3 on (3 and 4 bytes)"),
        (b"", b"x", "differs from byte 0 on (0 and 1 bytes)"),
        (
            b"a" * BLOCK + b"b",
            b"a" * BLOCK + b"c",
            f"differs from byte {BLOCK} on ({BLOCK + 1} and {BLOCK + 1} bytes)",
        ),
        (
            b"a" * BLOCK,
            b"a" * BLOCK + b"c",
            f"differs from byte {BLOCK} on ({BLOCK} and {BLOCK + 1} bytes)",
        ),
    ],
)
def test_the_first_byte_that_differs_is_told(
    old: bytes, new: bytes, words: str | None, tmp_path: Path
) -> None:
    folders = write(tmp_path / "old", file=old), write(tmp_path / "new", file=new)
    assert list(compared(*folders)) == [Comparison("file", words)]


def test_files_that_one_image_has_alone_are_told_and_signatures_are_not(tmp_path: Path) -> None:
    old = write(tmp_path / "old", both=b"x", gone=b"")
    (old / "manifest.json.sig").write_bytes(b"signed later")
    new = write(tmp_path / "new", both=b"x", more=b"")
    assert list(compared(old, new)) == [
        Comparison("both", None),
        Comparison("gone", "was not built again"),
        Comparison("more", "is only in the one built now"),
    ]


@pytest.mark.parametrize(("difference", "same"), [(None, True), ("differs", False)])
def test_an_image_is_reproduced_when_no_file_differs(difference: str | None, same: bool) -> None:
    files = [Comparison("a", None), Comparison("b", difference)]
    assert Reproduction(Path("image"), files, [], [], "").is_same is same
