# SPDX-License-Identifier: Apache-2.0
"""The verb that a package is made with: install."""

from pathlib import Path

import click

from sevkit.cli.common import Place, main, shown
from sevkit.cli.words import images
from sevkit.errors import RecipeError


@main.command()
@click.argument("image", default="sev-guest", shell_complete=images)
@click.option(
    "--prefix",
    type=click.Path(path_type=Path),
    default="/usr/share/sevkit",
    show_default=True,
    help="The folder that a runtime will read images from.",
)
@click.option(
    "--destdir",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="DESTDIR",
    show_envvar=True,
    help="A folder that stands for / while a package is made.",
)
@click.pass_obj
def install(place: Place, image: str, prefix: Path, destdir: Path | None) -> None:
    """Copy IMAGE, checked, to PREFIX/NAME/VERSION-BUILD, and point PREFIX/NAME/latest at it.

    The copy has the same bytes, files have mode 0644, and it is there whole or not at all. Its
    signature is the one that IMAGE has now, or none. Images that were installed before stay.
    """
    from sevkit.image.output import install as publish

    if not prefix.is_absolute():
        raise RecipeError(f"--prefix: {prefix} does not begin with /")
    folder = prefix if destdir is None else destdir.absolute() / prefix.relative_to("/")
    click.echo(f"installed {shown(publish(place.image(image), folder))}")
