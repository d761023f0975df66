# SPDX-License-Identifier: Apache-2.0
"""Files that a user names, among them some that never end or never begin."""

import os
import subprocess
from pathlib import Path

import pytest
from firmware_samples import firmware

from sevkit.errors import ImageError, RecipeError
from sevkit.firmware.ovmf import read_firmware
from sevkit.image.signature import attach
from sevkit.measure.id_block import id_block
from sevkit.opening import open_at_once


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_at_once(tmp_path / name) as file:
            assert file.read() == b"content"


def test_what_can_t_be_opened_is_told_as_open_tells_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_at_once(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        open_at_once(tmp_path)


def test_nobody_waits_for_a_fifo_that_nobody_writes_to(fifo: Path) -> None:
    with open_at_once(fifo) as file:
        assert file.read() == b""


def test_a_pipe_is_read_to_the_end_that_its_writer_gives_it() -> None:
    """As a shell hands over: --id-key <(decrypt key)."""
    with subprocess.Popen(["sh", "-c", "sleep 1; echo late"], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        with open_at_once(Path(f"/dev/fd/{writer.stdout.fileno()}")) as file:
            assert file.read() == b"late\n"


def test_a_fifo_is_neither_firmware_nor_a_key_nor_a_signature(fifo: Path, tmp_path: Path) -> None:
    (tmp_path / "OVMF.fd").write_bytes(firmware())
    assert read_firmware(tmp_path / "OVMF.fd").size
    with pytest.raises(ImageError, match="it is empty"):
        read_firmware(fifo)
    with pytest.raises(RecipeError, match="is no key"):
        id_block(bytes(48), fifo)
    with pytest.raises(ImageError, match="no ssh signature"):
        attach(tmp_path, fifo)
