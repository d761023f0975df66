# SPDX-License-Identifier: Apache-2.0
"""Verbs about an image: why, verify, schema, boot."""

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from sevkit.cli.common import THE_ANSWER_IS_NO, Place, json_option, main, say_json, shown
from sevkit.cli.guest_words import WithCommand
from sevkit.cli.words import images
from sevkit.errors import ImageError, RecipeError

if TYPE_CHECKING:
    from sevkit.guest.launch import Accelerator


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
    from sevkit.rootfs.contents import why as explain

    contents = json.loads((place.image(image) / "contents.json").read_bytes())
    for line in explain(contents, path):
        click.echo(line)


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
    from sevkit.image.manifest import load
    from sevkit.image.manifest import verify as differences
    from sevkit.image.measured import measurement_differences

    if identity is not None and key is None:
        raise RecipeError(
            "--identity says whose signature it must be, and nothing says whose keys are trusted",
            hint="add --key FILE, a file of allowed signers (ssh-keygen(1))",
        )
    folder = place.image(image)
    found = differences(folder) or measurement_differences(folder, load(folder))
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
            click.echo(line)
        click.echo(f"{shown(folder)}: {'as published' if not found else f'{len(found)} differ'}")
    return THE_ANSWER_IS_NO if found else 0


@main.command(cls=WithCommand, words_before=1)
@click.argument("image", default="sev-guest", shell_complete=images)
@click.argument("command", metavar="[COMMAND…]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--rootfs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder that the command sees as its root (read-only 9p, changes stay in the guest).",
)
@click.option("--memory", help="Memory of the guest: 512M, 2G (default: as the manifest says).")
@click.option(
    "--accel",
    type=click.Choice(["sev-snp", "sev-es", "sev", "kvm", "tcg"]),
    help="How to run it (default: the best that works here).",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="What the guest reported as JSON: on stderr when there is a COMMAND.",
)
@click.option("--console", is_flag=True, help="Only show the console: for a foreign /init.")
@click.option("--until", metavar="TEXT", help="With --console: stop once TEXT appeared.")
@click.option("--timeout", type=float, help="With --console: seconds to wait for the end.")
@click.option("--qemu-arg", "qemu_args", multiple=True, help="One more argument for QEMU.")
@click.pass_obj
def boot(
    place: Place,
    image: str,
    command: tuple[str, ...],
    rootfs: Path | None,
    memory: str | None,
    accel: "Accelerator | None",
    as_json: bool,
    console: bool,
    until: str | None,
    timeout: float | None,
    qemu_args: tuple[str, ...],
) -> int:
    """Boot an image under QEMU, run COMMAND in it, and relay its output and exit status.

    SEV where the host has it, else KVM where it truly works, else emulation. The command sees the
    initramfs, or the folder of --rootfs. Options of boot stand before COMMAND.
    """
    from sevkit.guest.session import Session
    from sevkit.store.store import default_root

    folder = place.image(image)
    session = Session.of_image(
        folder,
        memory=memory,
        accel=accel,
        cache=default_root(os.environ) / "hosts",
        log=place.output / ".log" / "console.log",
        rootfs=rootfs,
        extra_args=qemu_args,
    )
    for line in session.remarks():
        click.echo(f"sevkit: {line}", err=True)
    if console:
        session.watch(raw_stream(1), until=until, seconds=timeout)
        return 0
    outcome = session.run(
        list(command),
        stdout=raw_stream(1),
        stderr=raw_stream(2),
        stdin=_piped_input() if command else None,
    )
    if as_json:
        click.echo(json.dumps(session.record(outcome), indent=2), err=bool(command))
    elif not command:
        for line in session.summary(outcome):
            click.echo(line)
    return outcome.exit_status


def raw_stream(descriptor: int) -> BinaryIO:
    """A stream of ours, unbuffered: what the guest says is passed on at once, or an error."""
    return open(descriptor, "wb", buffering=0, closefd=False)


def _piped_input() -> int | None:
    """Standard input unless it is a terminal, closed, or /dev/null."""
    try:
        status = os.fstat(0)
    except OSError:
        return None
    is_null = stat.S_ISCHR(status.st_mode) and status.st_rdev == Path(os.devnull).stat().st_rdev
    return None if is_null or os.isatty(0) else 0
