# SPDX-License-Identifier: Apache-2.0
"""The manual page sevkit(1), made from what the verbs say of themselves: man.

The source is man(7) of groff; the same verbs give the same bytes.
"""

import inspect
from collections.abc import Iterable, Iterator

import click

from sevkit import __version__
from sevkit.cli.common import main
from sevkit.cli.verbs import SECTIONS

EXIT_STATUSES = {
    "0": "done",
    "1": "it failed: the build, the guest, an image that can't be read",
    "2": "the recipe or the call is wrong",
    "3": "something is missing on this host: a tool, a device, room on a disk",
    "4": "what was asked was found out, and the answer is no (below)",
    "130": "interrupted",
}
ENVIRONMENT = {
    "SEVKIT_STORE": "The folder of the store; without it $XDG_CACHE_HOME/sevkit, else "
    "~/.cache/sevkit.",
    "DESTDIR": "As install --destdir.",
}


@main.command("man")
def man() -> None:
    """Print the manual page sevkit(1), in the format of man(7)."""
    click.echo("\n".join(_page()))


def _page() -> Iterator[str]:
    top = click.Context(main, info_name="sevkit")
    yield f'.TH SEVKIT 1 "" "sevkit {__version__}" "User Commands"'
    yield from (".SH NAME", "sevkit \\- build the guest side of AMD SEV confidential containers")
    yield from (".SH SYNOPSIS", ".B sevkit", "[OPTIONS] VERB [ARGUMENTS]...")
    yield ".SH DESCRIPTION"
    yield from _paragraphs(main.help or "")
    yield ".SH OPTIONS"
    yield from _options(main, top)
    for title, verbs in SECTIONS.items():
        yield f".SH {title.upper()}"
        for name in verbs:
            yield from _verb(main.commands[name], top)
    yield ".SH EXIT STATUS"
    for status, text in EXIT_STATUSES.items():
        yield from _item(status, text.removesuffix(" (below)"))
    yield from _paragraphs("boot and run exit with the status of what ran in the guest.")
    yield ".SH ENVIRONMENT"
    for name, text in ENVIRONMENT.items():
        yield from _item(name, text)


def _verb(command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=command.name, parent=parent)
    if isinstance(command, click.Group):
        for each in command.commands.values():
            yield from _verb(each, context)
        return
    words = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f'.SS "{_escaped(words)}"'
    yield from _paragraphs(command.help or "")
    yield from _options(command, context)
    if command.epilog:
        lines = command.epilog.splitlines()[2:]
        yield from (".PP", "Examples:", ".nf", *map(_escaped, lines), ".fi")


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for option in command.get_params(context):
        if isinstance(option, click.Option) and "--help" not in option.opts:
            record = option.get_help_record(context)
            if record is not None:
                yield from _item(*record)


def _item(term: str, text: str) -> Iterable[str]:
    return (".TP", f".B {_escaped(term)}", _escaped(text))


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        yield from (".PP", _escaped(" ".join(paragraph.split())))


def _escaped(text: str) -> str:
    """`text` as roff prints it: no escape, no request, no hyphen where there is a minus."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    plain = "".join(each if each.isascii() else f"\\[u{ord(each):04X}]" for each in plain)
    return f"\\&{plain}" if plain[:1] in (".", "'") else plain
