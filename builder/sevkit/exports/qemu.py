# SPDX-License-Identifier: Apache-2.0
"""QEMU's own command line, as a shell script and as a file for -readconfig.

The rules are those that `sevkit boot` starts guests by (`sevkit.guest.qemu`); here the console is
the terminal and the agent's channel a socket in the current folder. Starts nothing.
"""

import shlex
from collections.abc import Iterator, Sequence

from sevkit.errors import RecipeError
from sevkit.exports.subject import Subject
from sevkit.guest.launch import QEMU_NAME
from sevkit.guest.qemu import guest_argv

AGENT_SOCKET = "agent.sock"

_CONFIG_LINE = 1023
"""util/qemu-config.c: qemu_config_foreach() reads lines into 1024 bytes."""
_BARE = ("-nodefaults", "-no-user-config", "-no-reboot")
_ON_THE_COMMAND_LINE = (*_BARE, "-display", "-monitor", "-cpu", "-serial")
"""Options that a -readconfig file has no section for."""


def arguments(subject: Subject) -> list[str]:
    """The arguments of QEMU, without the program."""
    argv = guest_argv(
        subject.launch,
        subject.spec,
        console="stdio,id=console,mux=on,signal=off",
        agent=f"socket,id=agent,path={AGENT_SOCKET},server=on,wait=off",
    )
    if (signed := subject.id_block) is not None:
        record = signed.record()
        words = f",id-block={record['id_block']},id-auth={record['id_auth']}"
        words += ",author-key-enabled=on" if record["author_key_enabled"] else ""
        argv[argv.index("-object") + 1] += words
    return argv


def script(subject: Subject) -> bytes:
    """A shell script that starts the guest and gives QEMU what it is given itself."""
    lines = ["#!/bin/sh"]
    lines += [f"# {note}" for note in [*subject.notes(), *_host_notes(subject)]]
    lines.append("set -eu")
    words = [f'exec "${{QEMU:-{QEMU_NAME}}}"']
    for word in arguments(subject):
        if word.startswith("-") and not words[-1].endswith(" \\"):
            words[-1] += " \\"
            words.append(f"    {shlex.quote(word)}")
        else:
            words[-1] += f" {shlex.quote(word)}"
    return "\n".join([*lines, *words]).encode() + b' \\\n    "$@"\n'


def config_file(subject: Subject) -> bytes:
    """A file for ``-readconfig``; its head says which arguments go before that.

    Format: util/qemu-config.c of QEMU: a section is ``[group "id"]``, a line ``name = "value"``.
    Raises `RecipeError` for a value with a quotation mark or a line too long for the format.
    """
    outside: list[str] = []
    sections: list[tuple[str, str | None, dict[str, str]]] = []
    machine: dict[str, str] = {}
    for option, value in _pairs(arguments(subject)):
        if option in _ON_THE_COMMAND_LINE:
            outside += [option] if option in _BARE else [option, value]
        elif option in ("-kernel", "-initrd", "-append", "-bios"):
            machine[{"-bios": "firmware"}.get(option, option[1:])] = value
        elif option == "-machine":
            machine |= _options(value, "type")
        else:
            sections.append(_section(option, value))
    sections.append(("machine", None, machine))
    lines = [f"# {note}" for note in [*subject.notes(), *_host_notes(subject)]]
    lines.append(f"# {QEMU_NAME} {shlex.join(outside)} -readconfig THIS_FILE")
    for group, name, options in sections:
        lines += ["", f'[{group} "{name}"]' if name else f"[{group}]"]
        lines += [_line(group, key, value) for key, value in options.items()]
    return "\n".join(lines).encode() + b"\n"


def _host_notes(subject: Subject) -> list[str]:
    if subject.mode is None:
        return []
    facts = subject.manifest.launch.modes[subject.mode]
    least = facts.qemu_kernel_hashes if subject.is_hashed else facts.qemu
    return [
        f"needs QEMU {least}, Linux {facts.host_kernel} on the host",
        f"cbitpos={subject.launch.c_bit} is for EPYC 7002 and later; EPYC 7001 has 47",
    ]


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    words = iter(argv)
    for word in words:
        yield word, "" if word in _BARE else next(words)


def _section(option: str, value: str) -> tuple[str, str | None, dict[str, str]]:
    """The section that stands for one option of the command line."""
    first = {
        "-device": "driver",
        "-chardev": "backend",
        "-object": "qom-type",
        "-accel": "accel",
        "-m": "size",
        "-smp": "cpus",
        "-name": "guest",
        "-sandbox": "enable",
    }
    groups = {"-m": "memory", "-smp": "smp-opts"}
    options = _options(value, first.get(option, ""))
    name = options.pop("id", None)
    return groups.get(option, option[1:]), name, options


def _options(text: str, first: str) -> dict[str, str]:
    """``a,b=c`` as a mapping; what has no name is called `first`. Commas are written twice."""
    found: dict[str, str] = {}
    for part in text.replace(",,", "\0").split(","):
        key, equals, value = part.replace("\0", ",").partition("=")
        found[key if equals else first] = value if equals else key
    return found


def _line(group: str, key: str, value: str) -> str:
    line = f'  {key} = "{value}"'
    if '"' in value or len(line.encode()) >= _CONFIG_LINE:
        raise RecipeError(
            f"QEMU's -readconfig can't hold {group}.{key} of this image",
            why="a value there has no quotation mark and fits with its name into 1023 bytes",
            hint="export the format qemu, a command line",
        )
    return line
