# SPDX-License-Identifier: Apache-2.0
"""Each compression, read back by another implementation, within the kernel's limits."""

import gzip
import lzma
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import zstandard

from sevkit.rootfs.compress import METHODS, compress, compressor

XZ_BLOCK_BYTES = 3 * (8 << 20)
"""What each of xz's threads takes: three times the dictionary (xz(1), --block-size)."""


def run(argv: Sequence[str | Path]) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "initramfs.cpio"
    source = random.Random(5)
    words = [source.randbytes(40) for _ in range(3000)]
    path.write_bytes(b"".join(source.choice(words) for _ in range(70_000)))
    return path


def packed(
    method: str, archive: Path, tmp_path: Path, *, level: int | None = None, threads: int = 2
) -> Path:
    source = tmp_path / "initramfs.cpio"
    shutil.copyfile(archive, source)
    result = tmp_path / f"packed-{threads}"
    compress(method, level or METHODS[method].level, source, result, threads=threads, run=run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["initramfs.cpio", result.name]
    return result


def unpacked(method: str, path: Path) -> bytes:
    if method in ("zstd", "lz4"):
        return subprocess.run([method, "-dc", path], check=True, capture_output=True).stdout
    if method == "none":
        return path.read_bytes()
    return (
        gzip.decompress(path.read_bytes())
        if method == "gzip"
        else lzma.decompress(path.read_bytes())
    )


@pytest.mark.parametrize("method", METHODS)
def test_what_is_packed_is_unpacked_by_the_usual_tool(
    method: str, archive: Path, tmp_path: Path
) -> None:
    if METHODS[method].tool and shutil.which(METHODS[method].tool) is None:
        pytest.skip(f"{METHODS[method].tool} is not here")
    result = packed(method, archive, tmp_path)
    assert unpacked(method, result) == archive.read_bytes()
    magic = {
        "zstd": b"\x28\xb5\x2f\xfd",
        "lz4": b"\x02\x21\x4c\x18",
        "gzip": b"\x1f\x8b\x08\x00\0\0\0\0",  # no name, no time
        "xz": b"\xfd7zXZ\0\0\x01",  # CRC32
    }
    assert result.read_bytes().startswith(magic.get(method, archive.read_bytes()[:4]))


@pytest.mark.parametrize(
    ("method", "level"),
    [("zstd", 1), ("zstd", 10), ("zstd", 12), ("lz4", 9), ("gzip", 9), ("xz", 1), ("none", 0)],
)
def test_the_bytes_are_the_same_with_any_number_of_threads(
    method: str, level: int, archive: Path, tmp_path: Path
) -> None:
    if METHODS[method].tool and shutil.which(METHODS[method].tool) is None:
        pytest.skip(f"{METHODS[method].tool} is not here")
    longer = tmp_path / "longer"
    longer.write_bytes(archive.read_bytes() + bytes(XZ_BLOCK_BYTES))
    results = []
    for threads in (1, 2, 4):
        folder = tmp_path / str(threads)
        folder.mkdir()
        results.append(packed(method, longer, folder, level=level, threads=threads).read_bytes())
    assert results[0] == results[1] == results[2]


def test_zstd_stays_within_the_kernels_window(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(bytes(20 << 20))
    for level in (10, 19, 22):
        compress("zstd", level, big, tmp_path / "packed", threads=2, run=run)
        frame = zstandard.get_frame_parameters((tmp_path / "packed").read_bytes())
        assert frame.window_size <= 8 << 20
        assert frame.has_checksum
        assert frame.content_size == 20 << 20


def test_the_version_that_shapes_the_bytes_is_named() -> None:
    assert compressor("zstd", str) == "zstd " + ".".join(map(str, zstandard.ZSTD_VERSION))
    assert compressor("lz4", lambda tool: f"{tool} 1.9") == "lz4 1.9"
    assert compressor("gzip", str).startswith("zlib ")
