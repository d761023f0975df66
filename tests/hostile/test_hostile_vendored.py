# SPDX-License-Identifier: Apache-2.0
"""A vendored folder from someone else: what is none of its files is refused before it is copied."""

import hashlib
import os
from pathlib import Path

import pytest

from sevkit.engine import find_fetches
from sevkit.errors import ImageError
from sevkit.project.vendor import SOURCES, SUMS, without_vendored
from sevkit.sources import Pin
from sevkit.stage import Plan
from sevkit.store.store import Store

CONTENT = b"a source"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def take(folder: Path, size: int | None) -> Store:
    """The store after a build from `folder`, which names one file, found what to fetch."""
    pin = Pin(f"blob:{DIGEST}", "source", size, {"kind": "url"})
    plan = Plan(None, (), {pin.reference: pin}, {})  # type: ignore[arg-type]
    store = Store(folder / "store")
    assert not without_vendored(plan, find_fetches(plan, store), folder, store).tasks
    return store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / SOURCES).mkdir()
    (tmp_path / SOURCES / SUMS).write_text(f"{DIGEST}  blob-{DIGEST}\n")
    return tmp_path / SOURCES / f"blob-{DIGEST}"


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_good_file_is_taken_also_where_it_is_a_link(
    file: Path, tmp_path: Path, size: int | None
) -> None:
    (tmp_path / "elsewhere").write_bytes(CONTENT)
    file.symlink_to(tmp_path / "elsewhere")
    assert take(tmp_path, size).blob(f"blob:{DIGEST}").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [len(CONTENT), None])
def test_a_device_without_an_end_and_a_pipe_without_a_beginning_are_refused(
    file: Path, tmp_path: Path, size: int | None
) -> None:
    file.symlink_to("/dev/zero")
    with pytest.raises(ImageError, match="no regular file"):
        take(tmp_path, size)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ImageError, match="no regular file"):
        take(tmp_path, size)


def test_a_file_that_is_too_large_is_refused_by_its_size(file: Path, tmp_path: Path) -> None:
    file.touch()
    os.truncate(file, 1 << 40)
    with pytest.raises(ImageError, match=f"{1 << 40} bytes, not {len(CONTENT)}"):
        take(tmp_path, len(CONTENT))
