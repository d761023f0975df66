# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or as they were."""

import os
import stat
from pathlib import Path

import pytest

from sevkit.disk import write_named, write_whole


def test_a_file_is_replaced_whole_with_the_mode_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.symlink_to("elsewhere")
    write_whole(path, b"one")
    assert not path.is_symlink()
    write_whole(path, b"two", mode=0o440, drafts=tmp_path)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"two", 0o440)
    assert sorted(tmp_path.rglob("*")) == [path.parent, path]


def test_a_file_that_a_user_names_is_followed_and_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    link, real, pipe = tmp_path / "link", tmp_path / "other" / "real", tmp_path / "pipe"
    link.symlink_to(real)
    for data in (b"one", b"two"):  # before it leads anywhere, and after
        write_named(link, data, mode=0o640)
        assert (real.read_bytes(), real.stat().st_mode & 0o777) == (data, 0o640)
    assert link.is_symlink()
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_named(pipe, b"data", mode=0o640)
    assert os.read(reader, 9) == b"data"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(real.parent.iterdir()) == [real]
    assert sorted(tmp_path.iterdir()) == [link, real.parent, pipe]


def test_a_file_that_can_not_be_written_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def full(_: Path) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patched:
        patched.setattr("sevkit.disk.fsync", full)
        with pytest.raises(OSError, match="no space"):
            write_whole(path, b"after")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"before"
    write_whole(path, b"after")
    assert path.read_bytes() == b"after"
