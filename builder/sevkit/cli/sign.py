# SPDX-License-Identifier: Apache-2.0
"""The verb that signs images: sign. `verify --key`, among the verbs about images, checks."""

from pathlib import Path

import click

from sevkit.cli.common import Place, main, shown
from sevkit.cli.words import images
from sevkit.errors import RecipeError


@main.command()
@click.argument("image", shell_complete=images)
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="An ssh key: the private one, or the public one of a key that an agent holds.",
)
@click.option(
    "--export",
    "export_to",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write what is to be signed, to sign it on another machine.",
)
@click.option(
    "--attach",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="Take over a signature that was made elsewhere.",
)
@click.pass_obj
def sign(
    place: Place, image: str, key: Path | None, export_to: Path | None, attach: Path | None
) -> None:
    """Sign IMAGE with an ssh key: one signature, over the manifest, covers every file.

    In two steps where the key is on another machine: --export FILE, there
    `ssh-keygen -Y sign -n sevkit-manifest -f KEY FILE`, then --attach FILE.sig.
    """
    from sevkit.image import signature

    if sum(option is not None for option in (key, export_to, attach)) != 1:
        raise RecipeError("sign needs one of --key, --export and --attach")
    folder = place.image(image)
    if export_to is not None:
        export_to.write_bytes(signature.message(folder))
        click.echo(f"{export_to}: sign it with ssh-keygen -Y sign -n {signature.NAMESPACE}")
        return
    if key is not None:
        signature.sign(folder, key)
    elif attach is not None:
        signature.attach(folder, attach)
    click.echo(f"{shown(folder)}: signed")
