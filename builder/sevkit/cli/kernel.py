# SPDX-License-Identifier: Apache-2.0
"""Verbs about the kernel's configuration: kconfig why, menuconfig."""

from pathlib import Path
from typing import Any

import click

from sevkit.cli.common import (
    BuildOptions,
    Place,
    jobs_option,
    main,
    opened,
    plan_options,
    shown,
    split_words,
)
from sevkit.cli.words import recipes


@main.group()
def kconfig() -> None:
    """Ask about the kernel configuration."""


@kconfig.command("why", short_help="Say why a symbol has its value")
@click.argument("symbol")
@click.argument("words", nargs=-1, metavar="[RECIPE] [NAME=VALUE]...", shell_complete=recipes)
@jobs_option
@plan_options
@click.pass_obj
def kconfig_why(place: Place, /, symbol: str, words: tuple[str, ...], **flags: Any) -> None:
    """Say why SYMBOL has its value: who asked for it, what it depends on, what selects it."""
    targets, overrides = split_words(words)
    options = BuildOptions(**flags)
    with opened(place, options) as project:
        recipe = project.recipe(targets[0] if targets else "sev-guest", overrides)
        with project.kernel_questions(recipe, options.settings(place)) as questions:
            click.echo(questions.why(symbol))


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE] [NAME=VALUE]...", shell_complete=recipes)
@click.option(
    "-o",
    "--fragment",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the fragment goes (default: kernel-configs/RECIPE-menuconfig.config).",
)
@jobs_option
@plan_options
@click.pass_obj
def menuconfig(
    place: Place, /, words: tuple[str, ...], fragment: Path | None, **flags: Any
) -> None:
    """Edit the kernel configuration in menus; what changed is saved as a fragment."""
    targets, overrides = split_words(words)
    options = BuildOptions(**flags)
    with opened(place, options) as project:
        recipe = project.recipe(targets[0] if targets else "sev-guest", overrides)
        with project.kernel_questions(recipe, options.settings(place)) as questions:
            text = questions.edit()
    if text is None:
        click.echo("nothing was changed")
        return
    path = fragment or place.folder / "kernel-configs" / f"{recipe.name}-menuconfig.config"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    click.echo(f"saved {shown(path)}; to use it add '{path.stem}' to kernel.configs of a recipe")
