# SPDX-License-Identifier: Apache-2.0
"""Which words are the verb's own, and which are the guest's command."""

import shlex

import click
import pytest

from sevkit.cli import main


def parsed(line: str) -> dict[str, object]:
    verb, *words = shlex.split(line)
    command = main.commands[verb]
    with click.Context(command, info_name=verb) as context:
        command.parse_args(context, words)
    return context.params


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("boot", ()),
        ("boot sev-guest", ()),
        ("boot sev-guest ls -l /", ("ls", "-l", "/")),
        ("boot sev-guest -- ls -l --json", ("ls", "-l", "--json")),
        ("boot sev-guest --json ls --json", ("ls", "--json")),
        ("boot --memory 1G sev-guest --accel=tcg ls -- -x", ("ls", "--", "-x")),
        ("boot sev-guest --qemu-arg -S --qemu-arg=-s cat - -n", ("cat", "-", "-n")),
    ],
)
def test_a_command_keeps_its_options(line: str, command: tuple[str, ...]) -> None:
    assert parsed(line)["command"] == command


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run sev-guest dir:rootfs", ("dir:rootfs",)),
        ("run sev-guest dir:rootfs -- id -u", ("dir:rootfs", "id", "-u")),
        ("run sev-guest dir:rootfs id -u", ("dir:rootfs", "id", "-u")),
        ("run -it -e A=1 sev-guest dir:rootfs -w /tmp sh -l", ("dir:rootfs", "sh", "-l")),
        ("run -ie A=1 sev-guest dir:rootfs sh -c 'a b'", ("dir:rootfs", "sh", "-c", "a b")),
        ("run -eA=e sev-guest dir:rootfs sh -l", ("dir:rootfs", "sh", "-l")),
        ("run sev-guest --rootfs / ls -l", ("ls", "-l")),
        ("run --rootfs=/ sev-guest ls -l", ("ls", "-l")),
    ],
)
def test_a_container_too(line: str, words: tuple[str, ...]) -> None:
    assert parsed(line)["words"] == words


def test_an_option_that_the_verb_does_not_have_is_refused_before_the_command() -> None:
    with pytest.raises(click.NoSuchOption):
        parsed("boot sev-guest -l")
    assert parsed("boot sev-guest --json")["as_json"] is True
