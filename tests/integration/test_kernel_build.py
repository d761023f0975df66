# SPDX-License-Identifier: Apache-2.0
"""A small kernel compiled from Debian's source, its initramfs linked in: whole, and in two goes."""

import gzip
import hashlib
import json
import subprocess
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from another_clock import another_clock

from sevkit.canonical import Json
from sevkit.errors import BuildError, RecipeError
from sevkit.sandbox import CancelledError, Processes, SandboxRunner
from sevkit.stage import Stage
from sevkit.stages.kernel import LOCKED_CONFIG, build_kernel

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

_SOME_OBJECTS = 300
"""About half of those of the small kernel."""
_MANY_OBJECTS = 10_000
"""What is more counts bytes of the source."""

pytestmark = pytest.mark.network


class Kernel:
    """Builds kernels from one unpacked source; every build has its own folder."""

    def __init__(self, folder: Path, source: Path):
        self.folder = folder
        self.source = source
        self.progress: list[tuple[int, int | None]] = []

    @property
    def objects_made(self) -> int:
        """How many object files the last build compiled."""
        return self.progress[-1][0]

    def build(
        self,
        name: str,
        inputs: Mapping[str, Path],
        params: Mapping[str, Json],
        placement: str,
        *,
        more: str = "",
        jobs: int = 2,
        leftovers: Path | None = None,
        cancel_at: int | None = None,
    ) -> Path:
        """The output folder of a build in the folder `name`; `more` adds to the fragment.

        It is cancelled when `cancel_at` objects are compiled.
        """
        place = self.folder / name
        for part in ("work", "out"):
            (place / part).mkdir(parents=True)
        config = place / "small.config"
        config.write_text(SMALL + more)
        everything = {"source": self.source, "config/small": config, **inputs}
        choices: dict[str, Json] = {
            "member": None,
            "configs": ["small"],
            "initramfs": {"compression": "gzip", "placement": placement},
            **params,
        }
        processes = Processes()

        def on_progress(done: int, total: int | None, _: str) -> None:
            self.progress.append((done, total))
            if cancel_at is not None and cancel_at <= done < _MANY_OBJECTS:
                processes.cancel()

        run = SandboxRunner(
            title="kernel",
            work=place / "work",
            inputs=everything,
            log=place / "log",
            jobs=jobs,
            confined=True,
            processes=processes,
            on_progress=on_progress,
            leftovers=leftovers,
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


@pytest.fixture(scope="module")
def leftovers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What builds leave for each other."""
    return tmp_path_factory.mktemp("leftovers")


def test_a_compilation_that_broke_off_gives_the_bytes_of_a_whole_one_at_another_time(
    kernel: Kernel, leftovers: Path, tmp_path: Path
) -> None:
    given = tmp_path / "initramfs-stage"
    given.mkdir()
    archive = gzip.compress(hashlib.sha512(b"not compressible").digest() * 3, mtime=0)
    (given / "initramfs").write_bytes(archive)
    with pytest.raises(CancelledError):
        kernel.build(
            "broken-off",
            {"initramfs": given},
            {},
            "builtin",
            more="\n# Another choice of symbols.\nCONFIG_POSIX_TIMERS=y\n",
            leftovers=leftovers,
            cancel_at=_SOME_OBJECTS,
        )
    broken_off = kernel.objects_made
    gone_on = kernel.build(
        "a-longer/path/gone-on", {"initramfs": given}, {}, "builtin", leftovers=leftovers
    )
    made_then = kernel.objects_made
    with another_clock():
        whole = kernel.build("whole", {"initramfs": given}, {}, "builtin", jobs=5)
    made_whole = kernel.objects_made
    for name in ("vmlinuz", "config", "kernel.json"):
        assert (gone_on / name).read_bytes() == (whole / name).read_bytes(), name
    assert _SOME_OBJECTS <= broken_off < _MANY_OBJECTS
    assert broken_off > made_whole / 3
    assert made_then < made_whole * 3 / 4
    config = (whole / "config").read_text()
    assert 'CONFIG_INITRAMFS_SOURCE="initramfs.cpio.gzip"\n' in config
    assert str(kernel.folder) not in config
    assert archive in unpacked(whole / "vmlinuz")
    facts = json.loads((whole / "kernel.json").read_text())
    assert facts["release"].startswith("6.12.")
    assert facts["initramfs"] == "builtin"
    assert facts["initramfs_sha256"] == hashlib.sha256(archive).hexdigest()
    assert facts["config_sha256"] == hashlib.sha256(config.encode()).hexdigest()
    assert facts["bzimage_bytes"] == (whole / "vmlinuz").stat().st_size
    assert "gcc" in facts["compiler"]


def test_progress_counts_the_files_of_the_kernel(kernel: Kernel) -> None:
    counted = [(done, total) for done, total in kernel.progress if total and total < _MANY_OBJECTS]
    done, total = counted[-1]
    assert total is not None
    assert 0.9 * total <= done <= total


def test_a_locked_configuration_is_compiled_as_it_is(
    kernel: Kernel, leftovers: Path, tmp_path: Path
) -> None:
    free = kernel.build("free", {}, {}, "separate", leftovers=leftovers)
    config = (free / "config").read_text()
    left_open = 'CONFIG_DEFAULT_HOSTNAME="(none)"'
    assert left_open in config
    locked = tmp_path / "locked.config"
    locked.write_text(config.replace(left_open, 'CONFIG_DEFAULT_HOSTNAME="named-by-the-lock"'))
    inputs = {LOCKED_CONFIG: locked}
    made = kernel.build("locked", inputs, {}, "separate", leftovers=leftovers)
    assert (made / "config").read_bytes() == locked.read_bytes()
    assert b"named-by-the-lock\0" in unpacked(made / "vmlinuz")
    assert b"named-by-the-lock\0" not in unpacked(free / "vmlinuz")
    asks = '\n# Another name.\nCONFIG_DEFAULT_HOSTNAME="asked"\n'
    with pytest.raises(RecipeError, match="DEFAULT_HOSTNAME"):
        kernel.build("against-the-fragments", inputs, {}, "separate", more=asks)


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
