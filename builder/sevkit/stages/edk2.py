# SPDX-License-Identifier: Apache-2.0
"""The firmware compiled from edk2: one platform description in, one flash image out.

Owns the order unpack → patch → build → look at what came out. What edk2 would draw at random or
take from this machine is fixed, so that the same source gives the same bytes wherever it is built.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from sevkit.canonical import Json
from sevkit.errors import BuildError, HostError
from sevkit.sandbox import ENVIRONMENT
from sevkit.stage import Planner, Runner, Stage
from sevkit.stages.edk2_source import SourceTree, plan_source, prepare_source
from sevkit.stages.firmware import publish_firmware
from sevkit.within import file_within, place_within, within

VERSION = 3

TOOLS = {
    "gcc": "gcc",
    "iasl": "acpica-tools",
    "ld": "binutils",
    "make": "make",
    "nasm": "nasm",
    "objcopy": "binutils",
    "patch": "patch",
    "python3": "python3",
}
"""What a host must have: command → the Debian package that holds it."""

_ARCHITECTURE = "X64"
_CONFIGURATION = ("build_rule", "target", "tools_def")
_COOKIES = 100
_PATH_BYTES = 160
_BUILDING = re.compile(r"^Building \.\.\. (\S+\.inf) \[")
_DIRECTIVE = re.compile(r"^\s*!(if|ifdef|ifndef|endif|include)\b\s*(\S*)", re.I)
_INF = re.compile(r"^\s*INF\s+(?:\w+\s*=\s*\S+\s+)*(\S+\.inf)\s*$")
_FLAGS = re.compile(r"^(DEFINE GCC_ALL_CC_FLAGS\s*=)", re.M)


def plan_edk2(planner: Planner) -> Stage:
    """Everything that can change the firmware's bytes, and nothing else.

    Raises `RecipeError` for a series that is malformed, and for a source that is no tree.
    """
    firmware = planner.recipe.firmware
    params, inputs = plan_source(planner)
    params |= {
        "source": firmware.source,
        "platform": firmware.platform,
        "target": firmware.target,
        "toolchain": firmware.toolchain,
        "defines": dict(sorted(firmware.defines.items())),
        "flash_device": firmware.flash_device,
        "modes": list(planner.recipe.launch.modes),
        "tools": {tool: planner.tool(tool) for tool in ("gcc", "iasl", "ld", "nasm", "python3")},
    }
    inputs["tools"] = planner.stage("firmware-tools")
    return Stage("firmware", "edk2", VERSION, params, inputs)


def build_edk2(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """Write ``firmware.fd`` and ``firmware.json``: what it can do; under ``build`` how it was made.

    Raises `BuildError` when a patch does not apply, a compiler fails, or a path of this machine
    got into the image; `ImageError` and `RecipeError` as `publish_firmware` does.
    """
    source = prepare_source(stage, inputs, run, _folder_in(run.work))
    platform, target = str(stage.params["platform"]), str(stage.params["target"])
    toolchain = str(stage.params["toolchain"])
    description = within(source.path, platform)
    if not description.is_file():
        raise BuildError(
            f"the firmware's source has no platform {platform}",
            why="there are " + ", ".join(_platforms(source.path)),
            hint="mend firmware.platform",
        )
    tools = inputs["tools"] / "BaseTools"
    _configure(source.path, tools)
    output = _output_directory(description)
    place = within(source.path, output, f"{target}_{toolchain}")
    _fix_cookies(place)
    _compile(stage, source.path, tools, run)
    volumes = within(source.path, output, f"{target}_{toolchain}", "FV")
    image = within(volumes, f"{stage.params['flash_device']}.fd")
    if not image.is_file():
        made = ", ".join(sorted(path.stem for path in volumes.glob("*.fd")))
        raise BuildError(
            f"{platform} has no flash device {image.stem}",
            why=f"it makes {made or 'none'}",
            hint="mend firmware.flash_device",
        )
    for path in (image, *volumes.glob("*.Fv")):
        if os.fsencode(run.work) in file_within(volumes, path).read_bytes():
            raise BuildError(f"{path.name} of the firmware holds a path of this machine")
    title = f"{stage.params['source']}: {platform}"
    publish_firmware(image, title, stage.params["modes"], out, {"build": _record(stage, source)})


def _folder_in(work: Path) -> str:
    """A name that gives the tree's path the same length everywhere.

    GenFw makes room for the path of each module and then, with --zero, fills it with zeros: the
    length would stay visible. Raises `HostError` where the path is too long already.
    """
    left = _PATH_BYTES - len(os.fsencode(work)) - 1
    if left < len("edk2"):
        raise HostError(
            "the path of the store is too long to compile firmware in",
            why=f"{work} leaves no room below {_PATH_BYTES} bytes",
            hint="name another place: SEVKIT_STORE=/a/shorter/path",
        )
    return "edk2".ljust(left, "_")


def _record(stage: Stage, source: SourceTree) -> Mapping[str, Json]:
    """How the firmware was made, for the manifest."""
    series = source.series
    return {
        **{key: stage.params[key] for key in ("source", "platform", "target", "toolchain")},
        "defines": stage.params["defines"],
        "version": source.version,
        "source_patches": list(source.own),
        "series": None if series is None else series.name,
        "patches": [] if series is None else [patch.record() for patch in series.patches],
        "moved_hunks": list(source.moved_hunks),
        "tools": stage.params["tools"],
    }


def _platforms(tree: Path) -> list[str]:
    found = (path.relative_to(tree).as_posix() for path in (tree / "OvmfPkg").rglob("*.dsc"))
    return sorted(found)


def _configure(tree: Path, tools: Path) -> None:
    """What edksetup.sh does: the three files of Conf, from their templates.

    Also maps the tree's path away in whatever a compiler may write down (``__FILE__``).
    """
    conf = within(tree, "Conf")
    conf.mkdir(exist_ok=True)
    for name in _CONFIGURATION:
        template = file_within(tools, "Conf", f"{name}.template")
        text = template.read_text(encoding="utf-8", errors="surrogateescape")
        text = _FLAGS.sub(rf"\1 -ffile-prefix-map={tree}=.", text)
        target = place_within(conf, f"{name}.txt")
        target.write_text(text, encoding="utf-8", errors="surrogateescape")


def _output_directory(description: Path) -> str:
    text = description.read_text(encoding="utf-8", errors="replace")
    match = re.search(r"^\s*OUTPUT_DIRECTORY\s*=\s*(\S+)", text, re.M)
    if match is None or "$" in match[1] or match[1].startswith("/") or ".." in match[1]:
        raise BuildError(
            f"{description.name} has no plain OUTPUT_DIRECTORY", why=match[1] if match else ""
        )
    return match[1]


def _fix_cookies(place: Path) -> None:
    """Write the values that build.py would draw at random for stack protectors.

    Nobody who has the image can be kept from reading them: they protect against accidents, and
    only as long as `PYTHONHASHSEED` is fixed does each module get the same one.
    """
    place.mkdir(parents=True, exist_ok=True)
    for bits in (32, 64):
        values = [
            int.from_bytes(hashlib.sha256(f"{bits}:{number}".encode()).digest()[: bits // 8])
            for number in range(_COOKIES)
        ]
        place_within(place, f"StackCookieValues{bits}.json").write_text(json.dumps(values))


def _compile(stage: Stage, tree: Path, tools: Path, run: Runner) -> None:
    platform = str(stage.params["platform"])
    expected = set(_expected_modules(tree, tree / platform))
    total, done = len(expected), 0

    def watch(line: str) -> None:
        nonlocal done
        match = _BUILDING.match(line)
        if match:
            path = match[1].removeprefix(f"{tree}/")
            if path in expected:
                expected.discard(path)
                done += 1
            run.progress(done, total or None, Path(path).stem)
        elif line.startswith("GUID cross reference"):
            run.progress(total, total or None, "assembling the image")

    defines = stage.params["defines"]
    assert isinstance(defines, Mapping)
    wrappers = tools / "BinWrappers" / "PosixLike"
    run(
        [
            *(wrappers / "build", "-p", platform, "-a", _ARCHITECTURE, "-n", str(run.jobs)),
            *("-b", str(stage.params["target"]), "-t", str(stage.params["toolchain"])),
            *(word for name, value in defines.items() for word in ("-D", f"{name}={value}")),
        ],
        cwd=tree,
        env={
            "CONF_PATH": str(tree / "Conf"),
            "EDK_TOOLS_PATH": str(tools),
            "PATH": f"{wrappers}:{ENVIRONMENT['PATH']}",
            "PYTHONHASHSEED": "0",
            "PYTHON_COMMAND": "python3",
            "WORKSPACE": str(tree),
        },
        on_line=watch,
    )


def _expected_modules(tree: Path, description: Path) -> Iterator[str]:
    """The modules that the flash description puts into the image whatever the macros say."""
    text = description.read_text(encoding="utf-8", errors="replace")
    match = re.search(r"^\s*FLASH_DEFINITION\s*=\s*(\S+)", text, re.M)
    if match is not None and (flash := within(tree, match[1])).is_file():
        yield from _unconditional(tree, flash, {flash})


def _unconditional(tree: Path, path: Path, seen: set[Path]) -> Iterator[str]:
    depth = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        directive = _DIRECTIVE.match(line)
        if directive:
            word = directive[1].lower()
            depth += (word.startswith("if")) - (word == "endif")
            if word == "include" and depth == 0:
                included = within(tree, directive[2])
                if included not in seen and included.is_file():
                    seen.add(included)
                    yield from _unconditional(tree, included, seen)
        elif depth == 0 and (match := _INF.match(line)):
            yield match[1]
