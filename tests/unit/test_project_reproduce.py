# SPDX-License-Identifier: Apache-2.0
"""How two files, and two images, are held against each other."""

from pathlib import Path

import pytest
from image_samples import image, recipe

from sevkit.errors import ImageError
from sevkit.image.manifest import load
from sevkit.image.shape import Source
from sevkit.project import reproduce as module
from sevkit.project.reproduce import Comparison, Reproduction, compared
from sevkit.recipe.model import Recipe
from sevkit.toolchain import HOST

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


def git_recipe(url: str, commit: str = "a" * 40) -> Recipe:
    sources = {"linux": {"git": url, "commit": commit}, "ovmf": {"file": Path("OVMF.fd")}}
    agent = {"source": "ovmf", "member": "agent"}
    return recipe(sources=sources, agent=agent)


def test_an_image_says_neither_what_is_fetched_nor_from_where(tmp_path: Path) -> None:
    private = "file:///home/somebody/private"
    manifest = load(image(tmp_path))

    def pins(asked: Recipe, commit: str) -> object:
        origin = {"kind": "git", "url": private, "commit": commit}
        row = Source(
            source="linux", reference=f"git:{commit}", name="linux.tar", size=7, origin=origin
        )
        return module._pins(manifest.model_copy(update={"sources": (row,)}), asked, HOST)

    asked = git_recipe("https://user:secret@example.org/linux.git")
    found = pins(asked, "a" * 40)
    assert isinstance(found, dict)
    [pin] = found["linux"]
    assert pin.origin["url"] == "https://user:secret@example.org/linux.git"
    with pytest.raises(ImageError, match="built from another linux") as caught:
        pins(asked, "b" * 40)
    assert f"git:{'b' * 40}" in caught.value.why
