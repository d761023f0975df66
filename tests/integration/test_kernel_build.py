# SPDX-License-Identifier: Apache-2.0
"""A small kernel compiled from Debian's source, with an initramfs linked in, twice."""

import gzip
import hashlib
import json
import subprocess
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from sevkit.errors import BuildError
from sevkit.sandbox import Processes, SandboxRunner
from sevkit.stage import Json, Stage
from sevkit.stages.kernel import build_kernel

SMALL = """\
# SEV exists on 64-bit processors only.
CONFIG_64BIT=y

# Something to see on the console.
CONFIG_PRINTK=y

# wanted: the default. An image that the test can unpack.
CONFIG_KERNEL_GZIP=y
"""
BROKEN = """\
Description: Break the build
Author: A. Person <person@example.org>
Forwarded: no
Last-Update: 2024-05-31

--- a/arch/x86/kernel/asm-offsets.c
+++ b/arch/x86/kernel/asm-offsets.c
@@ -1,1 +1,2 @@
+#error deliberately broken
{first}
"""

pytestmark = pytest.mark.network


class Kernel:
    """Builds kernels from one unpacked source; every build has its own folder."""

    def __init__(self, folder: Path, source: Path):
        self.folder = folder
        self.source = source
        self.progress: list[tuple[int, int | None]] = []

    def build(
        self, name: str, inputs: Mapping[str, Path], params: Mapping[str, Json], placement: str
    ) -> Path:
        """The output folder of a build in the folder `name`."""
        place = self.folder / name
        for part in ("work", "out"):
            (place / part).mkdir(parents=True)
        config = place / "small.config"
        config.write_text(SMALL)
        everything = {"source": self.source, "config/small": config, **inputs}
        choices: dict[str, Json] = {
            "member": None,
            "configs": ["small"],
            "initramfs": {"compression": "gzip", "placement": placement},
            **params,
        }
        run = SandboxRunner(
            title="kernel",
            work=place / "work",
            out=place / "out",
            inputs=everything,
            log=place / "log",
            jobs=2,
            confined=True,
            processes=Processes(),
            on_progress=lambda done, total, note: self.progress.append((done, total)),
        )
        stage = Stage("kernel", "kernel", 1, choices, dict.fromkeys(everything, ""))
        try:
            build_kernel(stage, everything, place / "out", run)
        finally:
            subprocess.run(["rm", "-rf", place / "work"], check=True)
        return place / "out"


@pytest.fixture(scope="module")
def kernel(mirror: None, tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """Builds from Debian's linux-source-6.12."""
    folder = tmp_path_factory.mktemp("kernel")
    folder.chmod(0o755)
    answer = subprocess.run(
        ["apt-get", "-o", "APT::Sandbox::User=root", "download", "linux-source-6.12"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        pytest.skip(f"linux-source-6.12 can't be downloaded here: {answer.stderr.strip()}")
    [package] = folder.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder / "package"], check=True)
    [archive] = (folder / "package/usr/src").glob("*.tar.xz")
    return Kernel(folder, archive)


def test_the_same_bytes_come_from_another_folder_with_the_initramfs_inside(
    kernel: Kernel, tmp_path: Path
) -> None:
    given = tmp_path / "initramfs-stage"
    given.mkdir()
    archive = gzip.compress(hashlib.sha512(b"not compressible").digest() * 3, mtime=0)
    (given / "initramfs").write_bytes(archive)
    first = kernel.build("first", {"initramfs": given}, {}, "builtin")
    second = kernel.build("a-longer/path/second", {"initramfs": given}, {}, "builtin")
    for name in ("vmlinuz", "config", "kernel.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    config = (first / "config").read_text()
    assert 'CONFIG_INITRAMFS_SOURCE="initramfs.cpio.gzip"\n' in config
    assert str(kernel.folder) not in config
    assert archive in unpacked(first / "vmlinuz")
    facts = json.loads((first / "kernel.json").read_text())
    assert facts["release"].startswith("6.12.")
    assert facts["initramfs"] == "builtin"
    assert facts["config_sha256"] == hashlib.sha256(config.encode()).hexdigest()
    assert facts["bzimage_bytes"] == (first / "vmlinuz").stat().st_size
    assert "gcc" in facts["compiler"]


def test_progress_counts_the_files_of_the_kernel(kernel: Kernel) -> None:
    counted = [(done, total) for done, total in kernel.progress if total and total < 10_000]
    done, total = counted[-1]
    assert total is not None
    assert 0.9 * total <= done <= total


def test_a_file_that_does_not_compile_is_shown_with_the_compilers_words(
    kernel: Kernel, tmp_path: Path
) -> None:
    patch = tmp_path / "break.patch"
    patch.write_text(BROKEN.format(first=" // SPDX-License-Identifier: GPL-2.0"))
    series: Json = {"name": "broken", "patches": [["break.patch", 1]]}
    with pytest.raises(BuildError) as caught:
        kernel.build("broken", {"patch/break.patch": patch}, {"series": series}, "separate")
    assert "arch/x86/kernel/asm-offsets.c:1:2: error: #error deliberately broken" in str(
        caught.value
    )
    assert caught.value.log is not None
    assert not list((kernel.folder / "broken" / "out").iterdir())


def unpacked(image: Path) -> bytes:
    """The kernel in a bzImage that gzip compressed."""
    data = image.read_bytes()
    start = data.index(b"\x1f\x8b\x08\x00")
    return zlib.decompressobj(31).decompress(data[start:])
