# SPDX-License-Identifier: Apache-2.0
"""The kernel: source, patch series and fragments in; bzImage, its configuration and facts out.

Owns the order unpack → patch → configure → check → compile: whatever can be known to be wrong is
known before the first file is compiled. Knows nothing of the cache.
"""

import hashlib
import json
import mmap
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from sevkit import kconfig
from sevkit.canonical import Json, sha256_of
from sevkit.errors import BuildError, RecipeError
from sevkit.rootfs.compress import METHODS
from sevkit.stage import Planner, Runner, Stage
from sevkit.stages.kernel_objects import Objects
from sevkit.stages.kernel_source import SourceTree, plan_source, prepare_source
from sevkit.within import file_within, place_within

VERSION = 3

TOOLS = {
    "ar": "binutils",
    "bc": "bc",
    "bison": "bison",
    "flex": "flex",
    "gcc": "gcc",
    "gzip": "gzip",
    "ld": "binutils",
    "lz4": "lz4",
    "make": "make",
    "patch": "patch",
    "perl": "perl",
    "xz": "xz-utils",
    "zstd": "zstd",
    "/usr/include/gelf.h": "libelf-dev",
    "/usr/include/openssl/ssl.h": "libssl-dev",
    "/usr/include/stdio.h": "libc6-dev",
}
"""What a host must have: command or file → the Debian package that holds it."""

LOCKED_CONFIG = "locked-config"
"""The role of a `.config` that is taken as it is, where one is locked."""

_COMPRESSORS = {
    "KERNEL_BZIP2": "bzip2",
    "KERNEL_LZ4": "lz4",
    "KERNEL_LZMA": "xz",
    "KERNEL_LZO": "lzop",
    "KERNEL_XZ": "xz",
    "KERNEL_ZSTD": "zstd",
}
_FIXED = {
    "KBUILD_BUILD_HOST": "sevkit",
    "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 1970",
    "KBUILD_BUILD_USER": "sevkit",
    "KBUILD_BUILD_VERSION": "1",
}
_OBJECT_MADE = re.compile(r"^  [A-Z][A-Z0-9_ \[\]]*? +(\S+\.o)$")


def plan_kernel(planner: Planner) -> Stage:
    """Everything that can change the kernel's bytes, and nothing else.

    Raises `RecipeError` for fragments and series that are malformed or contradict each other.
    """
    params, inputs = plan_source(planner)
    more, config_inputs, merged = plan_config(planner)
    params |= more
    inputs |= config_inputs
    compressor = next(
        (tool for name, tool in _COMPRESSORS.items() if _asks_for(merged, name)), "gzip"
    )
    params["tools"] = {tool: planner.tool(tool) for tool in ("gcc", "ld", compressor)}
    if planner.recipe.initramfs.placement == "builtin":
        inputs["initramfs"] = planner.stage("initramfs")
    return Stage("kernel", "kernel", VERSION, params, inputs)


def plan_config(planner: Planner) -> tuple[dict[str, Json], dict[str, str], kconfig.Merged]:
    """Parameters and inputs of the configuration, and the fragments merged.

    Raises `RecipeError` for what is wrong with any fragment, and for contradictions.
    """
    recipe = planner.recipe
    params: dict[str, Json] = {
        "configs": list(recipe.kernel.configs),
        "initramfs": {
            "compression": recipe.initramfs.compression,
            "placement": recipe.initramfs.placement,
        },
    }
    paths = {name: planner.fragment(name) for name in recipe.kernel.configs}
    inputs = {f"config/{name}": planner.local(path) for name, path in paths.items()}
    return params, inputs, merged_config(params, paths)


def merged_config(params: Mapping[str, object], paths: Mapping[str, Path]) -> kconfig.Merged:
    """The fragments at `paths`, and what the recipe implies, as one.

    Raises `RecipeError` naming all problems of all fragments.
    """
    fragments, problems = [], []
    for name, path in paths.items():
        try:
            fragments.append(kconfig.parse_fragment(path, f"{name}.config"))
        except RecipeError as error:
            problems += error.why.splitlines() or [error.what]
    if problems:
        raise RecipeError.of_problems("the kernel's fragments", problems)
    initramfs = params["initramfs"]
    assert isinstance(initramfs, Mapping)
    return kconfig.merge([*fragments, *_implied(initramfs)])


def _implied(initramfs: Mapping[str, object]) -> list[kconfig.Fragment]:
    """What the recipe's choice of an initramfs asks of the kernel."""
    compression, placement = str(initramfs["compression"]), initramfs["placement"]
    wanted = {"BLK_DEV_INITRD": "y"}
    if decompressor := METHODS[compression].symbol:
        wanted[decompressor] = "y"
    implied = [kconfig.Fragment.of_reason(f"initramfs.compression = {compression}", wanted)]
    if placement == "builtin":
        values = {
            "INITRAMFS_SOURCE": f'"{_builtin_name(compression)}"',
            "INITRAMFS_COMPRESSION_NONE": "y",
        }
        implied.append(kconfig.Fragment.of_reason("initramfs.placement = builtin", values))
    return implied


def _builtin_name(compression: str) -> str:
    """A name that usr/Makefile of the kernel takes as a finished archive (``*.cpio.*``)."""
    return f"initramfs.cpio.{compression}"


def _asks_for(merged: kconfig.Merged, symbol: str) -> bool:
    demand = merged.demands.get(symbol)
    return demand is not None and demand.value == "y"


def build_kernel(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """Write ``vmlinuz``, ``config`` and ``kernel.json``.

    kernel.json: ``release`` (uname -r), ``version``, ``config_sha256``, ``fragments``, ``patches``
    (name, sha256, description, forwarded, files), ``moved_hunks``, ``unmet_wanted`` (wanted symbols
    that this version does not have or give), ``compiler``, ``bzimage_bytes``, ``initramfs``
    (``builtin`` or ``separate``), ``initramfs_sha256`` (of the archive in it; null without one).

    Raises `RecipeError` naming every symbol that is not as the fragments want it and why,
    `BuildError` when a patch does not apply or the compiler fails.
    """
    source = prepare_source(stage, inputs, run)
    merged = merged_config(stage.params, fragment_paths(stage, inputs))
    objects = None
    if run.leftovers is not None:
        values = [demand.value for demand in merged.demands.values()]
        if LOCKED_CONFIG in inputs:
            values += kconfig.read_config(inputs[LOCKED_CONFIG]).values()
        objects = Objects.of(stage, source, values, run.leftovers)
    goes_on = objects is not None and objects.take_up(run)
    run.progress(0, None, "configuring")
    if LOCKED_CONFIG in inputs:
        config_path = kconfig.take_locked(source.path, inputs[LOCKED_CONFIG], run)
    else:
        config_path = kconfig.configure(source.path, merged, source.path, run)
    unmet = check_config(source.path, config_path, merged, run)
    archive_sha256 = None
    if "initramfs" in inputs:
        compression = _of_initramfs(stage, "compression")
        archive = place_within(source.path, _builtin_name(compression))
        shutil.copyfile(inputs["initramfs"] / "initramfs", archive)
        archive_sha256 = sha256_of(archive)
    config = config_path.read_bytes()
    try:
        _compile(
            source.path, run, expected=None if goes_on else _expected_objects(source.path, run)
        )
    finally:
        if objects is not None:
            objects.leave(run)
    if file_within(source.path, ".config").read_bytes() != config:
        raise BuildError("the kernel's configuration changed while it was compiled")
    _publish(stage, source, unmet, archive_sha256, out)


def fragment_paths(stage: Stage, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Where the fragments of a planned stage are, in their order."""
    names = stage.params["configs"]
    assert isinstance(names, list | tuple)
    return {str(name): inputs[f"config/{name}"] for name in names}


def check_config(tree: Path, config_path: Path, merged: kconfig.Merged, run: Runner) -> list[str]:
    """The wanted symbols that `config_path` does not have, a line each.

    Raises `RecipeError` explaining each required symbol that is lost, each forbidden one that is
    there or does not exist, and each that would put something random into the kernel.
    """
    values = kconfig.read_config(config_path)
    lost = kconfig.check(merged, values, kconfig.defined_symbols(tree))
    serious = [item for item in lost if item.demand.strength != "wanted"]
    if serious:
        model = kconfig.Model(tree, config_path, run.work, run)
        raise RecipeError.of_problems(
            f"the configuration of linux {kconfig.version_of(tree)}",
            kconfig.lost_symbols(serious, merged, model),
        )
    if drawn := list(kconfig.drawn_at_random(values)):
        raise RecipeError.of_problems(
            f"the configuration of linux {kconfig.version_of(tree)}",
            drawn,
            hint="forbid it in a fragment of kernel.configs",
        )
    return [
        f"{item.demand.where}: {item.demand.text}" + ("" if item.exists else " (no such symbol)")
        for item in lost
    ]


def _compile(tree: Path, run: Runner, expected: set[str] | None) -> None:
    """Make bzImage. `expected` are the objects that will be made; None when some are there."""
    total = None if expected is None else len(expected)
    made = set[str]()

    def watch(line: str) -> None:
        match = _OBJECT_MADE.match(line)
        if match:
            if expected is None or match[1] in expected:
                made.add(match[1])
            run.progress(len(made), total, match[1])
        elif line.startswith("  "):
            run.progress(len(made), total, line.strip())

    run(
        ["make", f"-j{run.jobs}", *kconfig.MAKE_VARIABLES, "bzImage"],
        cwd=tree,
        env=_FIXED,
        on_line=watch,
    )


def _expected_objects(tree: Path, run: Runner) -> set[str]:
    """The object files that the configured tree will make, nearly all: for the progress bar."""
    lister = place_within(run.work, "objects.mk")
    shutil.copyfile(Path(__file__).with_name("objects.mk"), lister)
    expected: set[str] = set()

    def collect(line: str) -> None:
        word, _, path = line.partition(" ")
        if word == "object":
            expected.add(path)

    run.progress(0, None, "counting")
    run(["make", "-rRs", "-f", lister, "obj=."], cwd=tree, on_line=collect)
    return expected


def _publish(
    stage: Stage, source: SourceTree, unmet: list[str], archive_sha256: str | None, out: Path
) -> None:
    image = file_within(source.path, "arch/x86/boot/bzImage")
    unpacked = file_within(source.path, "arch/x86/boot/compressed/vmlinux.bin")
    _check_no_path(unpacked, source.path)
    shutil.copyfile(image, out / "vmlinuz")
    config = file_within(source.path, ".config").read_bytes()
    if str(source.path).encode() in config:
        raise BuildError("the kernel's configuration holds a path of this machine")
    (out / "config").write_bytes(config)
    release = file_within(source.path, "include/config/kernel.release")
    values = kconfig.values_of(config.decode("utf-8", "replace"))
    facts = {
        "release": release.read_text(encoding="utf-8", errors="replace").strip(),
        "version": source.version,
        "config_sha256": hashlib.sha256(config).hexdigest(),
        "fragments": stage.params["configs"],
        "patches": [patch.record() for patch in source.patches],
        "moved_hunks": list(source.moved_hunks),
        "unmet_wanted": unmet,
        "compiler": values.get("CC_VERSION_TEXT", "").strip('"'),
        "bzimage_bytes": image.stat().st_size,
        "initramfs": _of_initramfs(stage, "placement"),
        "initramfs_sha256": archive_sha256,
    }
    text = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False)
    (out / "kernel.json").write_text(text + "\n", encoding="utf-8")


def _check_no_path(unpacked: Path, tree: Path) -> None:
    """Refuse a kernel that says where it was compiled; `unpacked` is what bzImage holds packed."""
    with unpacked.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(bytes(tree)) >= 0:
            raise BuildError("the kernel holds a path of this machine")


def _of_initramfs(stage: Stage, name: str) -> str:
    choices = stage.params["initramfs"]
    assert isinstance(choices, Mapping)
    return str(choices[name])
