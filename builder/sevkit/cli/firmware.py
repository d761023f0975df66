# SPDX-License-Identifier: Apache-2.0
"""Verbs about firmware: firmware inspect, prove."""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sevkit.cli.common import THE_ANSWER_IS_NO, Place, main, shown
from sevkit.cli.words import images

if TYPE_CHECKING:
    from sevkit.guest.cases import Seen

_SAYS = {
    "no-place": "it has no place for hashes: boot can't be measured",
    "advertises-but-does-not-verify": "it takes hashes and does NOT check them: any kernel boots",
    "holds-verifier": "it holds code that checks all three; --prove shows whether it stops",
    "unknown": "it takes hashes; the code that would check them was not found",
}
_VERDICTS = {0: "the firmware refuses what it must", THE_ANSWER_IS_NO: "NOT PROVEN"}


@main.group()
def firmware() -> None:
    """Ask about firmware images."""


@firmware.command("inspect", short_help="Say what an OVMF image can, and checks")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--prove", "is_tried", is_flag=True, help="Try under emulation what it refuses.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def inspect(file: Path, is_tried: bool, as_json: bool) -> int:
    """Say what the OVMF image FILE can launch, and whether it checks kernel hashes.

    With --prove it is started with a kernel of a few bytes, whole and changed. Exit status 4 when
    it did not refuse what it must.
    """
    from sevkit.firmware.modules import modules
    from sevkit.firmware.ovmf import parse, read_bytes
    from sevkit.firmware.verifier import verifier

    data = read_bytes(file)
    facts = parse(data, str(file))
    verdict = verifier(data, str(file)).value
    found = modules(data, str(file))
    cases = _tried(file) if is_tried else ()
    status = 0 if all(seen.is_right for seen in cases) else THE_ANSWER_IS_NO
    if as_json:
        record = {**facts.record(), "verifier": verdict, "modules": found}
        record |= {"cases": [asdict(seen) for seen in cases]} if is_tried else {}
        click.echo(json.dumps(record, indent=2, sort_keys=True))
        return status
    click.echo(f"{file}: {facts.size} bytes, sha256 {facts.sha256}")
    for mode, problems in facts.problems.items():
        click.echo(f"{mode}: {'; '.join(problems) or 'can be launched'}")
    click.echo(f"loads as: {', '.join(facts.loads_as) or 'nothing that QEMU takes'}")
    for entry in facts.table:
        click.echo(f"table: {entry.guid} {entry.name or 'unknown'} {entry.data}")
    for section in facts.metadata or ():
        name = section.name or section.type
        click.echo(f"metadata: {section.base:#x} {section.size} bytes {name}")
    if facts.kernel_hashes is not None and not facts.kernel_hashes.for_snp:
        click.echo("kernel hashes: no section of the SEV metadata for sev-snp")
    click.echo(f"modules: {len(found)}")
    click.echo(f"kernel hashes: {_SAYS[verdict]}")
    _show(cases)
    if is_tried:
        click.echo(f"{file}: {_VERDICTS[status]}")
    return status


def _tried(file: Path) -> "tuple[Seen, ...]":
    from sevkit.guest.launch import find_qemu
    from sevkit.guest.trial import try_firmware

    with tempfile.TemporaryDirectory(prefix="sevkit-trial-") as scratch:
        return try_firmware(file.absolute(), find_qemu(), Path(scratch), name=str(file))


def _show(cases: "Iterable[Seen]") -> None:
    for seen in cases:
        mark = "ok" if seen.is_right else "WRONG"
        click.echo(
            f"{mark:5}  {seen.case:12}  {seen.seen:11}  {seen.seconds:5.1f} s  {seen.evidence}"
        )


@main.command()
@click.argument("image", default="sev-guest", shell_complete=images)
@click.option("--json", "as_json", is_flag=True, help="The proof as JSON.")
@click.pass_obj
def prove(place: Place, image: str, as_json: bool) -> int:
    """Show that the firmware of IMAGE refuses a changed kernel, initrd or command line.

    Boots the image under emulation, with the hashes where a SEV host puts them: as it is, and with
    one thing changed each time. The result is written beside the image's folder. Exit status 4 when
    anything changed was not refused.
    """
    from sevkit.disk import write_whole
    from sevkit.guest.prove import prove as boot_all
    from sevkit.guest.session import Asked

    folder = place.image(image).resolve()
    proof = boot_all(place.session(folder, Asked(accel="tcg")))
    file = folder.with_name(f"{folder.name}.proof.json")
    write_whole(file, proof.text().encode())
    status = 0 if proof.is_proven else THE_ANSWER_IS_NO
    if as_json:
        click.echo(proof.text(), nl=False)
        return status
    _show(proof.cases)
    click.echo(f"{shown(file)}: {_VERDICTS[status]}")
    return status
