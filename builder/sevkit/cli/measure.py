# SPDX-License-Identifier: Apache-2.0
"""Verbs about what an image measures as: measure, diff."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from sevkit.cli.common import THE_ANSWER_IS_NO, Place, main, shown
from sevkit.cli.words import images
from sevkit.firmware.ovmf import Mode
from sevkit.measure.digests import CPUS, INITS, Init, Vmm
from sevkit.printable import printable

if TYPE_CHECKING:
    from sevkit.measure.digests import Measurement


class _Id(click.ParamType[bytes]):
    """16 bytes in hexadecimal."""

    name = "id"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> bytes:
        if not re.fullmatch(r"[0-9A-Fa-f]{32}", value):
            self.fail(f"{value} is not 32 hexadecimal digits", param, ctx)
        return bytes.fromhex(value)


class _Number(click.ParamType[int]):
    """A whole number, decimal or with 0x."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return int(value, 0)
        except ValueError:
            self.fail(f"{value} is no number, decimal or with 0x", param, ctx)


_KEY = click.Path(path_type=Path)


@main.command()
@click.argument("image", default="sev-guest", shell_complete=images)
@click.option(
    "--mode", "modes", multiple=True, type=click.Choice(get_args(Mode)), help="How it is launched."
)
@click.option("--vcpus", multiple=True, type=click.IntRange(1, 512), help="Number of vCPUs.")
@click.option(
    "--cpu",
    "cpus",
    multiple=True,
    type=click.Choice(CPUS),
    metavar="MODEL",
    help="CPU model, as QEMU calls it.",
)
@click.option(
    "--guest-features", multiple=True, type=_Number(), help="SEV_FEATURES: 0x1, 0x21 (DebugSwap)."
)
@click.option(
    "--vmm",
    "vmms",
    multiple=True,
    type=click.Choice(get_args(Vmm)),
    help="What starts it; ec2 and gce: SNP only.",
)
@click.option("--init", "inits", multiple=True, type=click.Choice(INITS), help="Of sev-es.")
@click.option("--cmdline", metavar="LINE", help="The kernel command line, whole.")
@click.option("--append", multiple=True, metavar="WORDS", help="Added to the command line.")
@click.option("--id-key", type=_KEY, help="Sign an ID block for each SNP launch with this key.")
@click.option("--author-key", type=_KEY, help="Sign the ID key with this key.")
@click.option("--policy", type=_Number(), help="Guest policy of the ID block (default: 0x30000).")
@click.option("--guest-svn", type=_Number(), help="Guest SVN of the ID block (default: 0).")
@click.option("--family-id", type=_Id(), metavar="HEX", help="Family ID of the ID block.")
@click.option("--image-id", type=_Id(), metavar="HEX", help="Image ID of the ID block.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def measure(
    place: Place,
    image: str,
    modes: tuple[Mode, ...],
    vcpus: tuple[int, ...],
    cpus: tuple[str, ...],
    guest_features: tuple[int, ...],
    vmms: tuple[Vmm, ...],
    inits: tuple[Init, ...],
    cmdline: str | None,
    append: tuple[str, ...],
    id_key: Path | None,
    author_key: Path | None,
    policy: int | None,
    guest_svn: int | None,
    family_id: bytes | None,
    image_id: bytes | None,
    as_json: bool,
) -> None:
    """Compute what launches of an image will measure as.

    The launches are those of the manifest; each option takes other values instead, and may be given
    more than once. The files are measured, and refused when they are not as published.
    """
    from dataclasses import replace

    from sevkit.image.manifest import load
    from sevkit.image.measured import id_blocks, measure_image, wanted_of

    folder = place.image(image)
    manifest = load(folder)
    given: dict[str, Any] = {
        "modes": modes,
        "vcpus": vcpus,
        "cpus": cpus,
        "guest_features": guest_features,
        "vmms": vmms,
        "inits": inits,
    }
    wanted = replace(wanted_of(manifest), **{key: value for key, value in given.items() if value})
    rows = measure_image(folder, manifest, wanted=wanted, cmdline=cmdline, append=append)
    blocks = id_blocks(
        rows,
        id_key,
        author_key=author_key,
        policy=policy,
        guest_svn=guest_svn,
        family_id=family_id,
        image_id=image_id,
    )
    records = [
        row.record() | ({} if block is None else {"id_block": block.record()})
        for row, block in zip(rows, blocks, strict=True)
    ]
    if as_json:
        click.echo(json.dumps(records, indent=2))
        return
    for row, record in zip(rows, records, strict=True):
        click.echo(f"{row.digest}  {row.title}{_caveat(row)}")
        for name, value in record.get("id_block", {}).items():
            if value is not None:
                click.echo(f"  {name}: {'on' if value is True else value or 'off'}")


def _caveat(row: "Measurement") -> str:
    return {
        "kernel": "",
        "firmware": "  (only the firmware: any kernel has this digest)",
        "kernel-unchecked": "  (firmware not shown to check the kernel)",
    }[row.covers]


@main.command()
@click.argument("old", metavar="A", shell_complete=images)
@click.argument("new", metavar="B", shell_complete=images)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_obj
def diff(place: Place, old: str, new: str, as_json: bool) -> int:
    """Say why the images A and B measure differently.

    Exit status 0 when nothing differs, 4 when something does.
    """
    from sevkit.image.diff import differences

    before, after = place.image(old), place.image(new)
    found = differences(before, after)
    if as_json:
        click.echo(json.dumps([each.record() for each in found], indent=2))
    else:
        for each in found:
            click.echo(printable(str(each)))
        if not found:
            click.echo(f"{shown(before)} and {shown(after)}: no difference")
    return THE_ANSWER_IS_NO if found else 0
