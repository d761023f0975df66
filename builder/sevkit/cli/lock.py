# SPDX-License-Identifier: Apache-2.0
"""Verbs about what a build is made from: lock, vendor, cache-key."""

from pathlib import Path
from typing import Any

import click

from sevkit.cli.common import (
    BuildOptions,
    Place,
    fetch_options,
    jobs_option,
    json_option,
    main,
    opened,
    plan_options,
    say_json,
    shown,
    split_words,
    tool_options,
)
from sevkit.cli.words import recipes
from sevkit.errors import RecipeError


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...", shell_complete=recipes)
@click.option("--update", is_flag=True, help="Look everything up anew.")
@tool_options
@jobs_option
@json_option
@click.pass_obj
def lock(
    place: Place, /, words: tuple[str, ...], update: bool, as_json: bool, **flags: Any
) -> None:
    """Pin every source, and the kernel configuration, in recipes/RECIPE.lock.

    What is locked stays so until --update. Builds read the lock; with --locked they refuse what
    is not in it.
    """
    targets, overrides = split_words(words)
    options = BuildOptions(**flags)
    rows = []
    with opened(place, options) as project:
        for name in targets or ["sev-guest"]:
            recipe = project.recipe(name, overrides)
            changes = project.write_lock(recipe, options.settings(place), update=update)
            written = project.lock(recipe)
            path = None if written is None else str(written.path)
            rows.append({"recipe": recipe.name, "changes": changes, "lock": path})
            for line in [] if as_json else changes:
                click.echo(line)
            if written is not None and not as_json:
                click.echo(f"locked: {shown(written.path)}")
    if as_json:
        say_json(rows)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("words", nargs=-1, metavar="[RECIPE] [NAME=VALUE]...", shell_complete=recipes)
@fetch_options
@click.pass_obj
def vendor(place: Place, /, folder: Path, words: tuple[str, ...], **flags: Any) -> None:
    """Write all that RECIPE is built from into FOLDER, to build elsewhere without network.

    Its README.md has the command that builds there.
    """
    from sevkit.events import Result
    from sevkit.project.vendor import vendor as write

    options = BuildOptions(**flags)
    with opened(place, options) as project:
        targets, overrides = split_words(words)
        if len(targets) > 1:
            raise RecipeError("vendor takes one recipe")
        recipe = project.recipe((targets or ["sev-guest"])[0], overrides)
        count = write(recipe, overrides, project, options.settings(place), folder.absolute())
        text = f"{shown(folder)}: {recipe.name} with {count} fetched files"
        project.listener(Result(recipe.name, folder.absolute(), False, text))


@main.command("cache-key")
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...", shell_complete=recipes)
@click.option("--files", is_flag=True, help="List what it covers.")
@json_option
@plan_options
@click.pass_obj
def cache_key(
    place: Place, /, words: tuple[str, ...], files: bool, as_json: bool, **flags: Any
) -> None:
    """Print what a CI cache should be keyed on: a digest of all that a build rests on.

    Asks nobody: a package that is not in the lock counts by what the recipe says of it.
    """
    from sevkit.project.cache_key import inputs_of, key_of

    targets, overrides = split_words(words)
    rows = []
    with opened(place, BuildOptions(**flags)) as project:
        for name in targets or ["sev-guest"]:
            recipe = project.recipe(name, overrides)
            inputs = inputs_of(recipe, project)
            covered = [{"kind": kind, "what": what} for kind, what in inputs] if files else []
            rows.append({"recipe": recipe.name, "key": key_of(inputs), "inputs": covered})
            if not as_json:
                click.echo(key_of(inputs))
            for row in [] if as_json else covered:
                click.echo(f"  {row['kind']:9} {row['what']}")
    if as_json:
        say_json(rows)
