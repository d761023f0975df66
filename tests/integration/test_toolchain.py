# SPDX-License-Identifier: Apache-2.0
"""Compilers of pinned packages: the same bytes on Debian 12 and 13 (docs/reproducible.md)."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from debian_root import debian_root

REPOSITORY = Path(__file__).resolve().parents[2]
Sevkit = Callable[..., subprocess.CompletedProcess[str]]
TOOLS = ("--toolchain", "debian:trixie", "--ci")
OTHER_HOST = (
    "bubblewrap",
    "coreutils",
    "libarchive13t64",
    "libc-bin",
    "python3",
    "qemu-system-x86",
    "util-linux",
)
"""What of Debian 13 a host needs to run sevkit; the Python packages are those of the lock."""

WHOLE = os.environ.get("SEVKIT_MATRIX") == "whole"
"""`make matrix`: the firmware is compiled and proven too, three minutes on each of the two."""
RECIPE = f"""\
schema = 1
extends = "{"sev-guest-lean" if WHOLE else "sev-guest-ovmf"}"
name = "small"
summary = "An image with as little as possible to compile"

[kernel]
configs = ["small"]

[agent]
path = "agent"
binary = "sevkit-agent"
"""
FRAGMENT = """\
# What guests with encrypted memory and an initramfs need.
CONFIG_64BIT=y
CONFIG_ACPI=y
CONFIG_EFI=y
CONFIG_EFI_STUB=y
CONFIG_AMD_MEM_ENCRYPT=y
CONFIG_SWIOTLB=y
CONFIG_BLK_DEV_INITRD=y
CONFIG_RD_ZSTD=y
"""

PIVOT = """
import ctypes, os, sys
root, *command = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.argtypes = [ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p]
os.chdir(root)
if libc.syscall(PIVOT_ROOT, b".", b".") or libc.umount2(b".", 2):
    raise OSError(ctypes.get_errno(), "the root can't be changed")
os.chdir("/")
os.execve(command[0], command, {
    "HOME": "/tmp",
    "LIBARCHIVE": "/usr/lib/x86_64-linux-gnu/libarchive.so.13",
    "PATH": "/usr/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONPATH": "/sevkit/builder:/site",
    "SEVKIT_STORE": "/store",
})
""".replace("PIVOT_ROOT", "155")  # x86-64; glibc has no wrapper

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mirror")]


@pytest.fixture(scope="module")
def debian_13(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root file system of a Debian 13 that has Python and no compiler."""
    root = debian_root(tmp_path_factory.mktemp("debian-13"), OTHER_HOST, "trixie")
    for name in ("dev", "output", "proc", "project", "sevkit", "site", "store", "tmp"):
        (root / name).mkdir(exist_ok=True)
    platforms = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
    installed = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--target", root / "site"),
            *("--python-version", "3.13", "--implementation", "cp", "--only-binary=:all:"),
            *(word for abi in ("cp313", "abi3", "none") for word in ("--abi", abi)),
            *(word for platform in platforms for word in ("--platform", platform)),
            *("--no-deps", "--require-hashes", "-r", REPOSITORY / "requirements.txt"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert installed.returncode == 0, installed.stderr
    return root


def on(
    root: Path, project: Path, store: Path, output: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    """Run sevkit on the other host: in its root, without network, its processes apart."""
    mounts: Mapping[str, Path] = {
        "output": output,
        "project": project,
        "sevkit": REPOSITORY,
        "store": store,
    }
    script = "\n".join(
        [
            "set -e",
            f"mount --bind {root} {root}",
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs tmpfs {root}/tmp",
            *(f"mount --bind {place} {root}/{name}" for name, place in mounts.items()),
            'exec "$@"',
        ]
    )
    command = [sys.executable, "-c", PIVOT, str(root), "/usr/bin/python3", "-m", "sevkit"]
    return subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--net"),
            *("sh", "-c", script, "sh", *command, "-C", "/project", "--output", "/output"),
            *words,
        ],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a recipe of its own."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(REPOSITORY / "agent", folder / "agent")
    for name, text in (("recipes/small.toml", RECIPE), ("kernel-configs/small.config", FRAGMENT)):
        (folder / name).parent.mkdir()
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def here(sevkit: Sevkit, project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this host has built the image with the compilers of Debian 13: `store`, `output`."""
    folder = tmp_path_factory.mktemp("here")
    built = sevkit(
        *("-C", project, "--output", folder / "output", "build", "small", *TOOLS),
        env={"SEVKIT_STORE": str(folder / "store")},
    )
    assert built.returncode == 0, built.stderr
    for stage in ("toolchain", "kernel", "initramfs", "firmware-proof" if WHOLE else "firmware"):
        assert f"{stage}: built" in built.stderr
    return folder


def test_a_toolchain_gives_the_same_bytes_on_another_release_of_debian(
    here: Path, project: Path, debian_13: Path, tmp_path: Path
) -> None:
    if "VERSION_CODENAME=trixie" in Path("/etc/os-release").read_text():
        pytest.skip("this host is the other release itself: no two were compared")
    store, output = tmp_path / "store", tmp_path / "output"
    for part in ("blobs", "pins"):
        shutil.copytree(here / "store" / part, store / part)
    output.mkdir()
    surroundings = (debian_13, project, store, output)
    there = on(*surroundings, "build", "small", *TOOLS, "--offline")
    assert there.returncode == 0, there.stdout + there.stderr

    built = {path.name: path for path in (here / "store/entries").glob("*/*")}
    again = {path.name: path for path in (store / "entries").glob("*/*")}
    assert built.keys() == again.keys()
    for key, entry in built.items():
        text = (entry / "content.json").read_text()
        assert (again[key] / "content.json").read_text() == text, entry / "key.json"

    images = [(folder / "output/small/latest").resolve() for folder in (here, tmp_path)]
    assert images[0].name == images[1].name
    names = [{path.name for path in image.iterdir()} for image in images]
    assert names[0] == names[1]
    assert names[0] > {"vmlinuz", "initramfs", "firmware.fd", "manifest.json", "sbom.cdx.json"}
    for name in names[0]:
        assert (images[0] / name).read_bytes() == (images[1] / name).read_bytes(), name

    without = on(*surroundings, "build", "small:agent", "--ci", "--offline")
    assert without.returncode == 3, without.stdout + without.stderr
    assert "gcc (package gcc)" in without.stderr


def test_a_lock_and_a_vendored_folder_hold_the_compilers_too(
    sevkit: Sevkit, here: Path, tmp_path: Path
) -> None:
    project, recipe = tmp_path / "project", "sev-guest-ovmf"
    for folder in ("recipes", "kernel-configs", "patches", "agent"):
        shutil.copytree(REPOSITORY / folder, project / folder)
    env = {"SEVKIT_STORE": str(here / "store")}
    locked = sevkit("-C", project, "lock", recipe, *TOOLS[:2], env=env)
    assert locked.returncode == 0, locked.stderr
    lock = json.loads((project / "recipes" / f"{recipe}.lock").read_text())
    [compilers] = [row["pins"] for row in lock["requests"] if row["source"] == "debs:toolchain"]
    assert {"gcc", "binutils", "make"} <= {pin["origin"]["package"] for pin in compilers}

    plan = ("-C", project, "build", recipe, "-n", "--locked")
    assert sevkit(*plan, *TOOLS, env=env).returncode == 0
    key = ("-C", project, "cache-key", recipe, "--locked")
    assert sevkit(*key, *TOOLS[:2], env=env).returncode == 0
    for words, why in (
        (("--toolchain", "debian:bookworm"), "debs:toolchain is not locked"),
        ((), "the kernel configuration is locked for something else"),
    ):
        for command in (plan, key):
            refused = sevkit(*command, *words, env=env)
            assert refused.returncode == 2
            assert why in refused.stderr
            hint = shlex.split(refused.stderr.partition("try: sevkit ")[2])
            assert hint[2:] == ["lock", recipe, *words]

    assert sevkit(*hint, env=env).returncode == 0
    assert sevkit(*plan, env=env).returncode == sevkit(*plan, *TOOLS, env=env).returncode == 0

    folder = tmp_path / "vendored"
    made = sevkit("-C", project, "vendor", folder, recipe, *TOOLS, env=env)
    assert made.returncode == 0, made.stderr
    elsewhere = {"SEVKIT_STORE": str(tmp_path / "elsewhere")}
    target = ("--output", tmp_path / "out", "build", f"{recipe}:agent", "--locked", "--offline")
    built = sevkit("-C", folder, *target, *TOOLS, env=elsewhere)
    assert built.returncode == 0, built.stderr
    assert "toolchain: built" in built.stderr


def test_a_release_that_no_mirror_has_is_a_wrong_call_or_recipe_and_told_where_it_is_said(
    sevkit: Sevkit, tmp_path: Path
) -> None:
    environment = {"SEVKIT_STORE": str(tmp_path / "store")}
    name = "sev-guest-ovmf"
    (tmp_path / "recipes").mkdir()

    def hint(*words: str, more: str = "") -> str:
        text = f'schema = 1\nextends = "{name}"\nname = "child"\n{more}'
        (tmp_path / "recipes" / "child.toml").write_text(text)
        result = sevkit("-C", tmp_path, "show", "child", *words, env=environment)
        assert result.returncode == 2, result.stderr
        assert "no mirror of this host has nosuite" in result.stderr
        return result.stderr.partition("try: ")[2].strip()

    assert hint("--toolchain=debian:nosuite") == "mend --toolchain=debian:nosuite"
    group = '[initramfs]\nsuite = "nosuite"\n'
    assert hint(more=group) == "mend initramfs.suite of child"
    source = '[sources]\novmf = { deb = "ovmf", suite = "nosuite" }\n'
    assert hint(more=source) == "mend sources.ovmf.suite of child"
    good = sevkit("-C", tmp_path, "show", name, env=environment)
    assert good.returncode == 0, good.stderr
