# SPDX-License-Identifier: Apache-2.0
"""Verbs about other programs and hosts: export, doctor."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import click

from sevkit.cli.common import Place, main, shown
from sevkit.cli.words import ExportFormat, WithFormats, images
from sevkit.errors import RecipeError
from sevkit.printable import printable


@main.command(cls=WithFormats)
@click.argument("image", shell_complete=images)
@click.argument("format_name", metavar="FORMAT", type=ExportFormat())
@click.option(
    "--mode",
    type=click.Choice(["sev", "sev-es", "sev-snp", "none"]),
    help="How the guest is launched (default: the strongest that the image can do).",
)
@click.option("--vcpus", type=int, help="One of the numbers that the manifest lists.")
@click.option("--cpu", help="One of the CPU models that the manifest lists.")
@click.option("--memory", help="Memory of the guest: 512M, 2G (default: as the manifest says).")
@click.option(
    "--qemu",
    metavar="VERSION",
    help="Which QEMU will run it, for --mode none: 10.0 hands firmware another kernel than 7.2.",
)
@click.option("--id-key", type=click.Path(path_type=Path), help="Sign an ID block of the launch.")
@click.option("--author-key", type=click.Path(path_type=Path), help="Sign the ID key.")
@click.option(
    "-o",
    "--out",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write (default: standard output).",
)
@click.pass_obj
def export(
    place: Place,
    image: str,
    format_name: str,
    mode: str | None,
    vcpus: int | None,
    cpu: str | None,
    memory: str | None,
    qemu: str | None,
    id_key: Path | None,
    author_key: Path | None,
    path: Path | None,
) -> None:
    """Write what another program needs to launch or to trust IMAGE, from its manifest."""
    if path is not None and not path.name:
        raise RecipeError("-o: the file to write has no name", hint="leave it out to print")
    from sevkit.disk import write_named
    from sevkit.exports import FORMATS, exported, subject_of

    subject = subject_of(
        place.image(image),
        mode=mode,
        vcpus=vcpus,
        cpu=cpu,
        memory=memory,
        qemu=qemu,
        id_key=id_key,
        author_key=author_key,
    )
    content = exported(subject, format_name)
    for line in subject.warnings():
        click.echo(f"sevkit: {line}", err=True)
    if path is None:
        click.echo(content, nl=False)
        return
    write_named(path, content, mode=FORMATS[format_name].file_mode)
    click.echo(f"wrote {shown(path)}")


@main.command()
@click.argument("image", required=False, shell_complete=images)
@click.option(
    "--mode",
    type=click.Choice(["sev", "sev-es", "sev-snp", "none", "build"]),
    help="What the host is to do (default: all that IMAGE can; without one: build, and boot "
    "without SEV).",
)
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
@click.pass_obj
def doctor(place: Place, image: str | None, mode: str | None, as_json: bool) -> int:
    """Say what this host lacks to launch IMAGE, or any guest in a mode, and how to get it.

    Exits 0 when the host is ready and 3 when it is not. Changes nothing.
    """
    from sevkit.doctor.facts import facts_of
    from sevkit.doctor.rules import Needs, judge, needs_of_image, needs_of_mode
    from sevkit.store.store import default_root

    facts = facts_of(default_root(os.environ) / "hosts")
    asked: Mapping[str, Needs]
    if image is None:
        asked = {one: needs_of_mode(one) for one in ([mode] if mode else ["build", "none"])}
    else:
        asked = needs_of_image(place.image(image), mode)
    findings = {one: judge(facts, needs) for one, needs in asked.items()}
    if as_json:
        plain = {one: [dataclasses.asdict(row) for row in rows] for one, rows in findings.items()}
        click.echo(json.dumps({"facts": dataclasses.asdict(facts), "findings": plain}, indent=2))
    else:
        for one, rows in findings.items():
            click.echo(f"{one}: {'not ready' if any(row.problem for row in rows) else 'ready'}")
            for row in rows:
                mark = "NO" if row.problem else "ok"
                click.echo(printable(f"  {mark}  {row.rule}: {row.problem or row.found}"))
                if row.problem:
                    click.echo(f"      {row.remedy}")
    return 3 if any(row.problem for rows in findings.values() for row in rows) else 0
