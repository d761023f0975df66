# SPDX-License-Identifier: Apache-2.0
"""Verbs about firmware: firmware inspect."""

import json
from pathlib import Path

import click

from sevkit.cli.common import main

_SAYS = {
    "no-place": "it has no place for hashes: boot can't be measured",
    "advertises-but-does-not-verify": "it takes hashes and does NOT check them: any kernel boots",
    "holds-verifier": "it holds code that checks all three; whether it halts is not visible",
    "unknown": "it takes hashes; the code that would check them was not found",
}


@main.group()
def firmware() -> None:
    """Ask about firmware images."""


@firmware.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def inspect(file: Path, as_json: bool) -> None:
    """Say what the OVMF image FILE can launch, and whether it checks kernel hashes."""
    from sevkit.firmware_modules import modules
    from sevkit.firmware_verifier import verifier
    from sevkit.ovmf import parse, read_bytes

    data = read_bytes(file)
    facts = parse(data, str(file))
    verdict = verifier(data, str(file)).value
    found = modules(data, str(file))
    if as_json:
        record = {**facts.record(), "verifier": verdict, "modules": found}
        click.echo(json.dumps(record, indent=2, sort_keys=True))
        return
    click.echo(f"{file}: {facts.size} bytes, sha256 {facts.sha256}")
    for mode, problems in facts.problems.items():
        click.echo(f"{mode}: {'; '.join(problems) or 'can be launched'}")
    for entry in facts.table:
        click.echo(f"table: {entry.guid} {entry.name or 'unknown'} {entry.data}")
    for section in facts.metadata or ():
        name = section.name or section.type
        click.echo(f"metadata: {section.base:#x} {section.size} bytes {name}")
    if facts.kernel_hashes is not None and not facts.kernel_hashes.for_snp:
        click.echo("kernel hashes: no section of the SEV metadata for sev-snp")
    click.echo(f"modules: {len(found)}")
    click.echo(f"kernel hashes: {_SAYS[verdict]}")
