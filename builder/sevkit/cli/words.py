# SPDX-License-Identifier: Apache-2.0
"""What the words of a command line may be: offered to a shell that completes them.

Reads folders, never a recipe: a completion must not take longer than typing.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

STAGES = ("agent", "firmware", "image", "initramfs", "kernel", "sysroot")
"""The stages that every image has."""


def recipes(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The names of recipes, or the files of what looks like a path."""
    from sevkit.recipe.library import Library

    if "/" in incomplete:
        return [CompletionItem(incomplete, type="file")]
    return _beginning(incomplete, Library.of(_folder(context)).recipes())


def targets(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The names of recipes and, behind a colon, of stages; bash takes it for a word of its own."""
    if (context.params.get("words") or ())[-1:] == (":",):
        return _beginning(incomplete, STAGES)
    recipe, colon, stage = incomplete.partition(":")
    if not colon:
        return recipes(context, parameter, incomplete)
    return [CompletionItem(f"{recipe}:{item.value}") for item in _beginning(stage, STAGES)]


def images(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The names of what was built, or the folders of what looks like a path."""
    if "/" in incomplete:
        return [CompletionItem(incomplete, type="dir")]
    output = context.find_root().params.get("output") or _folder(context) / "output"
    return _beginning(incomplete, (path.parent.name for path in Path(output).glob("*/latest")))


def logs(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The stages whose logs are there."""
    output = context.find_root().params.get("output") or _folder(context) / "output"
    names = (
        path.stem.rpartition("-")[0] or path.stem for path in Path(output, ".log").glob("*.log")
    )
    return _beginning(incomplete, names)


class ExportFormat(click.ParamType[str]):
    """One of the formats of `sevkit.exports`, which are loaded when one is asked for."""

    name = "format"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, if there is such a format."""
        from sevkit.exports import FORMATS

        if value not in FORMATS:
            self.fail(f"'{value}' is none of {', '.join(FORMATS)}", param, ctx)
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The formats, with what each is."""
        from sevkit.exports import FORMATS

        return [
            CompletionItem(name, help=form.summary)
            for name, form in FORMATS.items()
            if name.startswith(incomplete)
        ]


class WithFormats(click.Command):
    """A verb whose help lists the formats."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the text of the verb, and a row for each format below it."""
        from sevkit.exports import FORMATS

        super().format_help_text(ctx, formatter)
        with formatter.section("Formats"):
            formatter.write_dl([(name, form.summary) for name, form in FORMATS.items()])


def _folder(context: click.Context) -> Path:
    return Path(context.find_root().params.get("folder") or ".").absolute()


def _beginning(start: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(set(names)) if name.startswith(start)]
