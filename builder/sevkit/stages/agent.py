# SPDX-License-Identifier: Apache-2.0
"""The guest agent, which becomes /init: compiled from a folder of C, or taken from a source.

A folder is compiled by its own Makefile, which honours CC, CFLAGS_EXTRA, LDFLAGS_EXTRA and O
(where its products go) and puts the program at ``$(O)/<binary>``. Headers and libraries come from
the agent sysroot, never from the host. What the agent needs in the guest is not looked at here: the
initramfs stage does that.
"""

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sevkit.archive import extract_member
from sevkit.canonical import Json
from sevkit.errors import BuildError
from sevkit.rootfs.elf import X86_64, Elf, is_elf
from sevkit.stage import Planner, Runner, Stage
from sevkit.within import file_within, within

VERSION = 1

TOOLS = {"gcc": "gcc", "make": "make", "strip": "binutils"}
_SPDX_LINE = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+() -]*[A-Za-z0-9.+)])")
_HEAD_BYTES = 4096
_STRIPPED = "stripped"
_PRODUCTS = ("build", "__pycache__")
"""Folders that a make by hand fills (O of our own Makefile), and Python where it calls that."""


def plan_agent(planner: Planner) -> Stage:
    """The agent's sources, its sysroot and the compiler; or the source that holds it ready made."""
    agent = planner.recipe.agent
    stated: dict[str, Json] = {} if agent.licence is None else {"licence": agent.licence}
    params: dict[str, Json]
    if agent.path is not None:
        params = {
            "binary": agent.binary,
            "compiler": planner.tool("gcc"),
            "linker": planner.tool("ld"),
            "strip": planner.tool("strip"),
            **stated,
        }
        folder = agent_folder(planner, agent.path)
        inputs = {"folder": folder, "sysroot": planner.stage("agent-sysroot")}
        return Stage("agent", "agent", VERSION, params, inputs)
    assert agent.source is not None  # a recipe has one or the other
    outer = getattr(planner.recipe.sources[agent.source], "member", None)
    members = [member for member in (outer, agent.member) if member is not None]
    params = {"source": agent.source, "members": members, **stated}
    return Stage("agent", "agent", VERSION, params, {"source": planner.source(agent.source)})


def agent_folder(planner: Planner, path: Path) -> str:
    """The reference of the agent's sources: `path` without history, and products at its top."""
    products = {name for name in _PRODUCTS if (path / name).is_dir()}
    return planner.local(path, leave_out={".git", *products})


def build_agent(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """Write ``agent``, executable, and ``agent.json`` with its digest, size, format and licence.

    Raises `BuildError` when the result is neither an x86-64 ELF program nor a script.
    """
    program = out / "agent"
    if "folder" in inputs:
        binary = str(stage.params["binary"])
        made = _compile(binary, inputs["folder"], inputs["sysroot"] / "root", run)
        shutil.copyfile(made, program)
        title, licence = binary, _stated_licences(inputs["folder"])
    else:
        params: Mapping[str, Any] = stage.params
        _take(inputs["source"], params["members"], program, run.work)
        title, licence = ": ".join([params["source"], *params["members"][-1:]]), None
    program.chmod(0o755)
    data = program.read_bytes()
    description = {
        "name": title,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "format": _format(data, title),
        "licence": stage.params.get("licence", licence),
    }
    (out / "agent.json").write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")


def _compile(binary: str, folder: Path, sysroot: Path, run: Runner) -> Path:
    """Compile a copy, by paths relative to it, so that no place of this machine gets into it."""
    source = run.work / "source"
    shutil.copytree(folder, source, symlinks=True)
    _make_writable(source)
    (run.work / "sysroot").symlink_to(sysroot)
    (run.work / "build").mkdir()
    places = {run.work: ".", sysroot.resolve(): "sysroot"}  # gcc follows the link
    mapping = " ".join(
        shlex.quote(f"-ffile-prefix-map={place}={name}").replace("$", "$$")
        for place, name in places.items()
    )
    argv: list[str | Path] = ["make", "-C", source, f"-j{run.jobs}", "CC=gcc", "O=../build"]
    argv += [f"CFLAGS_EXTRA=--sysroot=../sysroot {mapping}", "LDFLAGS_EXTRA=--sysroot=../sysroot"]
    run(argv, cwd=run.work)
    made = within(run.work, "build", binary)
    if not made.is_file():
        raise BuildError(
            f"the agent's Makefile did not make {binary}",
            why=f"it was called with O=../build and {binary} is not there",
            hint="put the program at $(O)/<agent.binary>, or mend agent.binary",
        )
    run(["strip", "--strip-all", "-o", _STRIPPED, made], cwd=run.work)
    return file_within(run.work, _STRIPPED)


def _make_writable(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o700 if path.is_dir() else 0o600))


def _take(source: Path, members: Sequence[str], program: Path, work: Path) -> None:
    """Copy what `members` name, each a file in the folder or archive that the last one is."""
    place = source
    for number, member in enumerate(members):
        if place.is_dir():
            found = (place / member).resolve()
            if not found.is_relative_to(place.resolve()) or not found.is_file():
                raise BuildError(f"the agent's source has no file {member}")
        else:
            found = work / f"member-{number}"
            extract_member(place, member, found)
        place = found
    if place.is_dir():
        raise BuildError(
            "the agent's source is a folder", hint="say which file of it in agent.member"
        )
    shutil.copyfile(place, program)


def _format(data: bytes, title: str) -> str:
    if data[:2] == b"#!":
        return "script"
    if not is_elf(data):
        raise BuildError(
            f"the agent {title} can't be run: it is neither an ELF program nor a script",
            hint="mend agent.member" if ":" in title else "name the file in it with agent.member",
        )
    elf = Elf(data, title)
    if elf.platform != X86_64:
        raise BuildError(f"the agent {title} is for {elf.platform}, but the guest is {X86_64}")
    if not elf.is_program_or_library:
        raise BuildError(f"the agent {title} is an ELF object file, not a program")
    return str(elf.platform)


def _stated_licences(folder: Path) -> str | None:
    """The SPDX expressions that the files of `folder` state, joined; None without any."""
    stated: set[str] = set()
    for path in _files(folder.rglob("*")):
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", "replace")
        stated |= {match.strip() for match in _SPDX_LINE.findall(head)[:1]}
    return " AND ".join(f"({one})" if " OR " in one else one for one in sorted(stated)) or None


def _files(paths: Iterable[Path]) -> Iterable[Path]:
    return (path for path in paths if path.is_file() and not path.is_symlink())
