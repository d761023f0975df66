# SPDX-License-Identifier: Apache-2.0
"""An image built again where everything differs that must not matter (docs/reproducible.md)."""

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import another_clock
import pytest
from another_clock import CLOCK, need_libfaketime

from sevkit.store.store import default_root

REPOSITORY = Path(__file__).resolve().parents[2]
OTHER_USER = 23456
WHOLE = os.environ.get("SEVKIT_MATRIX") == "whole"
"""`make matrix`: kernel and firmware too. Without it these, ten minutes of work, are taken over;
test_kernel_build.py and test_firmware_build.py of tests/integration/ build small ones twice, the
second time under another path and clock and with more jobs."""
NOISE = {
    "ARCH": "arm64",
    "CC": "false",
    "CFLAGS": "-O0 -g",
    "GCC_COLORS": "error=01;31",
    "HOME": "/nonexistent/home",
    "KBUILD_BUILD_USER": "somebody",
    "KCFLAGS": "-O1",
    "LANG": "tr_TR.UTF-8",
    "LC_ALL": "tr_TR.UTF-8",
    "LOCALVERSION": "-other",
    "MAKEFLAGS": "-k",
    "PATH": f"/nonexistent/bin:{os.environ['PATH']}",
    "PYTHONHASHSEED": "4711",
    "SOURCE_DATE_EPOCH": "1234567890",
    "TMPDIR": "/var/tmp",
    "TZ": "Asia/Kathmandu",
    "USER": "somebody",
    "ZSTD_CLEVEL": "1",
}

Answer = subprocess.CompletedProcess[str]
Sevkit = Callable[..., Answer]

pytestmark = pytest.mark.network


def copied_in_another_order(source: Path, target: Path, chance: random.Random) -> None:
    """Copy a folder, creating its files in an order of chance: some file systems list them so."""
    target.mkdir(parents=True)
    entries = sorted(source.iterdir())
    chance.shuffle(entries)
    for path in entries:
        if path.is_dir() and not path.is_symlink():
            copied_in_another_order(path, target / path.name, chance)
        else:
            shutil.copy2(path, target / path.name, follow_symlinks=False)


def take_sources(image: Path, store: Path, target: Path) -> None:
    """Copy what the image was built from, and nothing that was built, into a new store."""
    manifest = json.loads((image / "manifest.json").read_text())
    for row in manifest["sources"]:
        digest = row["reference"].removeprefix("blob:")
        if row["origin"]["kind"] != "file":
            (target / "blobs" / digest[:2]).mkdir(parents=True, exist_ok=True)
            shutil.copy(store / "blobs" / digest[:2] / digest, target / "blobs" / digest[:2])


def take_results(image: Path, store: Path, target: Path) -> None:
    """Copy the results of the stages that made the kernel and the firmware of the image."""
    for name, facts in (("vmlinuz", "kernel.json"), ("firmware.fd", "firmware.json")):
        content = (image / name).read_bytes()
        for found in (store / "entries").glob(f"*/*/data/{name}"):
            if found.with_name(facts).exists() and found.read_bytes() == content:
                entry = found.parents[1]
                shutil.copytree(entry, target / entry.relative_to(store))


def elsewhere(
    image: Path, store: Path, folder: Path, project: Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
    """Run `sevkit reproduce` in other surroundings; what it built is in ``folder/kept``.

    Another path (and length), file system (tmpfs lists its files in another order than ext4),
    host name, locale, time zone, umask, number of jobs, environment, no network interface; the
    clock 400 days ahead, in build steps too; and, where this is root, another user.
    """
    need_libfaketime()
    chance = random.Random(20180101)
    for name in ("recipes", "kernel-configs", "patches", "agent"):
        copied_in_another_order(project / name, folder / "project" / name, chance)
    shutil.copytree(image, folder / "image")
    take_sources(image, store, folder / "store")
    if not WHOLE:
        take_results(image, store, folder / "store")
    (folder / "kept-in").mkdir()
    place = folder / "disk"
    deep = place / ("a-rather-long-name-" * 2) / "and ünusual"
    place.mkdir()
    environment = {
        **NOISE,
        **CLOCK,
        "PYTHONPATH": str(REPOSITORY / "builder"),
        "SEVKIT_STORE": str(place / "s"),
    }
    words = [f"{name}={value}" for name, value in environment.items()]
    user = f"setpriv --reuid {OTHER_USER} --regid {OTHER_USER} --clear-groups"
    command = shlex.join(
        [
            *(user.split() if os.geteuid() == 0 else []),
            *("env", "-i", *words, sys.executable, another_clock.__file__),
            *("-C", str(deep / "project"), "reproduce", str(deep / "image"), "--offline"),
            *("--json", "-j", str(len(os.sched_getaffinity(0)) + 1)),
            *([] if WHOLE else ["--reuse", "kernel", "--reuse", "firmware"]),
            *("--keep", str(folder / "kept-in" / "kept")),
        ]
    )
    script = f"""
        set -e
        hostname elsewhere
        mount -t tmpfs -o mode=755 tmpfs {place}
        mkdir -p {shlex.quote(str(deep))}
        cp -r {folder}/project {folder}/image {shlex.quote(str(deep))}
        cp -r {folder}/store {place}/s
        {f"chown -R {OTHER_USER}:{OTHER_USER} {place} {folder}" if os.geteuid() == 0 else ""}
        umask 077
        exec {command}
    """
    rootless = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return subprocess.run(
        ["unshare", *rootless, "--mount", "--uts", "--net", "sh", "-c", script],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, as those of pytest are not."""
    folder = Path(tempfile.mkdtemp(prefix="sevkit-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_an_image_built_again_elsewhere_has_the_same_bytes(
    sev_guest: Path, open_folder: Path
) -> None:
    result = elsewhere(sev_guest, default_root(os.environ), open_folder)
    assert result.returncode == 0, result.stdout + result.stderr
    answer = json.loads(result.stdout)
    assert answer["same"] is True
    assert answer["other_inputs"] == []
    assert set(answer["files"]) == {path.name for path in sev_guest.iterdir()}
    kept = open_folder / "kept-in" / "kept"
    for path in sev_guest.iterdir():
        assert (kept / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_agent_that_takes_in_the_date_is_noticed_elsewhere(
    sevkit: Sevkit, sev_guest: Path, open_folder: Path, tmp_path: Path
) -> None:
    """What shows that the clock of build steps is another one: the year is the same all day."""
    project = a_project(tmp_path)
    makefile = project / "agent" / "Makefile"
    year = "override CFLAGS_EXTRA += '-DYEAR=\"$(shell date +%Y)\"'\n"
    makefile.write_text(year + makefile.read_text())
    version = project / "agent" / "version.h"
    text = version.read_text()
    assert 'AGENT_VERSION "0' in text
    version.write_text(text.replace('AGENT_VERSION "0', 'AGENT_VERSION YEAR "-0'))
    built = sevkit("-C", project, "build", "sev-guest", "--ci")
    assert built.returncode == 0, built.stderr
    image = (project / "output" / "sev-guest" / "latest").resolve()
    result = elsewhere(image, default_root(os.environ), open_folder, project)
    assert result.returncode == 4, result.stdout + result.stderr
    answer = json.loads(result.stdout)
    assert answer["other_inputs"] == []
    assert answer["files"]["initramfs"] is not None
    assert any("/init" in cause for cause in answer["causes"])


def a_project(tmp_path: Path) -> Path:
    for folder in ("recipes", "kernel-configs", "patches", "agent"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, symlinks=True)
    return tmp_path


def reproduce(sevkit: Sevkit, project: Path, *words: str | Path) -> Answer:
    """Build again all but kernel and firmware, whose own tests build them twice."""
    reuse = ("--reuse", "kernel", "--reuse", "firmware", "--ci")
    return sevkit("-C", project, "reproduce", "sev-guest", *reuse, *words)


def test_what_differs_is_named_and_explained(
    sevkit: Sevkit, sev_guest: Path, tmp_path: Path
) -> None:
    """An agent whose Makefile draws a number makes another initramfs each time."""
    project = a_project(tmp_path)
    built = sevkit("-C", project, "build", "sev-guest", "--ci")
    assert built.returncode == 0, built.stderr
    same = reproduce(sevkit, project)
    assert same.returncode == 0, same.stdout + same.stderr
    assert "reproduced, every byte (not built again: kernel, firmware)" in same.stdout

    makefile = project / "agent" / "Makefile"
    chance = """CHANCE := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')\n"""
    chance += """override CFLAGS_EXTRA += '-DCHANCE="$(CHANCE)"'\n"""
    makefile.write_text(chance + makefile.read_text())
    version = project / "agent" / "version.h"
    text = version.read_text()
    assert 'AGENT_VERSION "0' in text
    version.write_text(text.replace('AGENT_VERSION "0', 'AGENT_VERSION CHANCE "-0'))
    built = sevkit("-C", project, "build", "sev-guest", "--ci")
    assert built.returncode == 0, built.stderr
    differs = reproduce(sevkit, project, "--json")
    assert differs.returncode == 4, differs.stdout + differs.stderr
    answer = json.loads(differs.stdout)
    assert answer["same"] is False
    assert answer["other_inputs"] == []
    changed = {name for name, difference in answer["files"].items() if difference}
    assert changed == {
        *("initramfs", "contents.json", "manifest.json", "sbom.cdx.json", "SHA256SUMS")
    }
    assert "differs from byte" in answer["files"]["initramfs"]
    assert any("initramfs" in cause and "/init" in cause for cause in answer["causes"])
    assert "rebuilt/initramfs" in Path(answer["diffoscope"]).read_text()


def test_a_project_that_has_moved_on_is_told_from_one_that_does_not_reproduce(
    sevkit: Sevkit, sev_guest: Path, tmp_path: Path
) -> None:
    project = a_project(tmp_path)
    recipe = project / "recipes" / "sev-guest.toml"
    recipe.write_text(recipe.read_text().replace('"quiet"]', '"quiet", "audit=0"]'))
    reuse = ("--reuse", "kernel", "--reuse", "firmware", "--reuse", "agent", "--ci")
    result = sevkit("-C", project, "reproduce", sev_guest, *reuse, "--json")
    assert result.returncode == 4, result.stdout + result.stderr
    answer = json.loads(result.stdout)
    assert any(line.startswith("cmdline: ") for line in answer["other_inputs"])
    assert answer["files"]["initramfs"] is None
    assert answer["files"]["manifest.json"] is not None


def test_an_image_that_was_changed_is_not_built_again(
    sevkit: Sevkit, sev_guest: Path, tmp_path: Path
) -> None:
    image = shutil.copytree(sev_guest, tmp_path / "image")
    with (image / "vmlinuz").open("ab") as file:
        file.write(b"x")
    refused = sevkit("reproduce", image, "--ci")
    assert refused.returncode == 1
    assert "not as it was published" in refused.stderr
