# SPDX-License-Identifier: Apache-2.0
"""Verbs about an image: why, verify, schema."""

import json
from pathlib import Path

import click

from sevkit.cli.common import THE_ANSWER_IS_NO, Place, json_option, main, say_json, shown
from sevkit.cli.words import images
from sevkit.errors import ImageError, RecipeError
from sevkit.printable import printable


@main.command()
@click.argument("path", metavar="PATH")
@click.option(
    "--image",
    default="sev-guest",
    shell_complete=images,
    help="An image directory or a recipe's name.",
)
@click.pass_obj
def why(place: Place, path: str, image: str) -> None:
    """Say what brought PATH into the initramfs: digest, package, licence, chain."""
    from sevkit.image.manifest import load, read_published
    from sevkit.rootfs.contents import read_contents
    from sevkit.rootfs.contents import why as explain

    folder = place.image(image)
    data = read_published(folder, load(folder), "contents")
    for line in explain(read_contents(data, str(folder / "contents.json")), path):
        click.echo(printable(line))


@main.command()
@click.argument("kind", type=click.Choice(["recipe", "manifest"]))
def schema(kind: str) -> None:
    """Print the JSON Schema of a recipe or a manifest."""
    if kind == "recipe":
        from sevkit.recipe.file import schema as made
    else:
        from sevkit.image.manifest import schema as made
    click.echo(json.dumps(made(), indent=2))


@main.command()
@click.argument("image", default="sev-guest", shell_complete=images)
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Also check its signature: a public ssh key, or a file of allowed signers.",
)
@click.option("--identity", metavar="NAME", help="Who of the allowed signers must have signed.")
@json_option
@click.pass_obj
def verify(place: Place, image: str, key: Path | None, identity: str | None, as_json: bool) -> int:
    """Check every byte of an image directory, and its launch digests, against its manifest.

    Exit status 4 when something differs, or the signature that --key asks for is not there.
    """
    from sevkit.image.published import differences

    if identity is not None and key is None:
        raise RecipeError(
            "--identity says whose signature it must be, and nothing says whose keys are trusted",
            hint="add --key FILE, a file of allowed signers (ssh-keygen(1))",
        )
    folder = place.image(image)
    found = differences(folder)
    signature = None
    if key is not None and not found:
        from sevkit.image.signature import check

        try:
            signature = check(folder, key, identity)
        except ImageError as error:
            if not as_json:
                click.echo(f"sevkit: error: {error}", err=True)
                return THE_ANSWER_IS_NO
            found = [error.what]
    if as_json:
        say_json({"image": str(folder), "differences": found, "signature": signature})
    else:
        for line in [*found, *([signature] if signature is not None else [])]:
            click.echo(printable(line))
        click.echo(f"{shown(folder)}: {'as published' if not found else f'{len(found)} differ'}")
    return THE_ANSWER_IS_NO if found else 0
