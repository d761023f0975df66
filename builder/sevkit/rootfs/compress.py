# SPDX-License-Identifier: Apache-2.0
"""One file compressed so that the kernel can unpack it as an initramfs.

Each format is held to what the kernel's decompressor takes (lib/decompress_*.c): a zstd window of
at most 8 MiB, lz4's legacy frame, xz with CRC32, a gzip header without time and name. The same
version of a compressor gives the same bytes whatever the machine; `compressor` names that version.
It never looks into what it compresses.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj

_CHUNK = 1 << 20
_ZSTD_WINDOW_LOG = 23
_XZ_DICTIONARY = "8MiB"


@dataclass(frozen=True)
class Method:
    """A compression.

    `level` is the one taken when none is asked for, `symbol` the kernel option that must be on
    (None where none is needed), `tool` what does it (empty when a Python module does).
    """

    level: int
    symbol: str | None
    tool: str = ""


METHODS: Mapping[str, Method] = {
    "zstd": Method(10, "RD_ZSTD"),
    "lz4": Method(9, "RD_LZ4", tool="lz4"),
    "gzip": Method(9, "RD_GZIP"),
    "xz": Method(6, "RD_XZ", tool="xz"),
    "none": Method(0, None),
}


def compressor(method: str, version_of: Callable[[str], str]) -> str:
    """The name and version of what compresses; `version_of` tells that of a host tool."""
    if METHODS[method].tool:
        return version_of(METHODS[method].tool)
    if method == "zstd":
        import zstandard

        return "zstd " + ".".join(map(str, zstandard.ZSTD_VERSION))
    return f"zlib {zlib.ZLIB_RUNTIME_VERSION}" if method == "gzip" else "none"


def compress(
    method: str,
    level: int,
    source: Path,
    destination: Path,
    *,
    threads: int,
    run: Callable[[Sequence[str | Path]], None],
) -> None:
    """Write `source` to `destination` compressed; `run` runs a host tool (lz4 and xz only).

    The number of threads never changes the bytes. xz also leaves ``<source>.xz`` for a moment, so
    the folder of `source` must be writable.
    """
    if method == "zstd":
        _zstd(level, source, destination, threads)
    elif method == "gzip":
        _gzip(level, source, destination)
    elif method == "lz4":
        run(["lz4", "-l", f"-{level}", "-q", "-f", source, destination])
    elif method == "xz":
        lzma = f"--lzma2=preset={level},dict={_XZ_DICTIONARY}"
        run(["xz", "--keep", "--force", "--threads=1", "--check=crc32", lzma, source])
        with open(f"{source}.xz", "rb") as made, destination.open("wb") as file:  # noqa: PTH123
            copyfileobj(made, file, _CHUNK)
        Path(f"{source}.xz").unlink()
    else:
        with source.open("rb") as original, destination.open("wb") as file:
            copyfileobj(original, file, _CHUNK)


def _zstd(level: int, source: Path, destination: Path, threads: int) -> None:
    """Always in the multi-threaded mode, of one thread too: the other mode gives other bytes."""
    from zstandard import ZstdCompressionParameters, ZstdCompressor

    size = source.stat().st_size
    usual = ZstdCompressionParameters.from_level(level)
    parameters = ZstdCompressionParameters.from_level(
        level,
        window_log=min(usual.window_log, _ZSTD_WINDOW_LOG),
        threads=max(1, threads),
        write_checksum=True,
        write_content_size=True,
    )
    with source.open("rb") as original, destination.open("wb") as file:
        ZstdCompressor(compression_params=parameters).copy_stream(
            original, file, size=size, read_size=_CHUNK
        )


def _gzip(level: int, source: Path, destination: Path) -> None:
    import gzip

    with (
        source.open("rb") as original,
        destination.open("wb") as file,
        gzip.GzipFile("", "wb", level, file, mtime=0) as packed,
    ):
        copyfileobj(original, packed, _CHUNK)
