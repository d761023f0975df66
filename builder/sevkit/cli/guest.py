# SPDX-License-Identifier: Apache-2.0
"""Verbs that talk to a running guest, or read what it attested: run, probe, verify-report."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sevkit.cli.common import THE_ANSWER_IS_NO, Place, main
from sevkit.cli.guest_words import WithCommand
from sevkit.cli.image import raw_stream
from sevkit.cli.words import images
from sevkit.errors import ImageError, RecipeError

if TYPE_CHECKING:
    from sevkit.guest.launch import Accelerator
    from sevkit.image.manifest import Manifest

_REPORT_LIMIT_BYTES = 1 << 16

ACCEL = click.option(
    "--accel",
    type=click.Choice(["sev-snp", "sev-es", "sev", "kvm", "tcg"]),
    help="How to run it (default: the best that works here).",
)


@main.command(cls=WithCommand, words_before=2, instead_of_a_word="--rootfs")
@click.argument("image", shell_complete=images)
@click.argument("words", metavar="ROOTFS [COMMAND…]", nargs=-1, type=click.UNPROCESSED)
@click.option("-t", "--tty", is_flag=True, help="Give the container a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Set a variable.")
@click.option("-w", "--workdir", help="Folder in the container to start in.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Names of the image, or numbers.")
@click.option("--hostname", default="sevkit", help="Host name of the container.")
@click.option("--memory", help="Memory limit of the container: 64M, 1G (default: none).")
@click.option(
    "--pids-limit", type=click.IntRange(0), help="Processes of the container; 0: no limit."
)
@click.option("--cpus", type=click.FloatRange(0.01, 512), help="CPUs of the container: 1.5.")
@click.option("--guest-memory", help="Memory of the guest: 512M, 2G.")
@click.option(
    "--rootfs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The same as dir:FOLDER in ROOTFS's place (read-only 9p, for development).",
)
@click.option(
    "--sealed", is_flag=True, help="Run what the image says; the guest takes no other orders."
)
@ACCEL
@click.option("--json", "as_json", is_flag=True, help="What happened as JSON, on stderr.")
@click.pass_obj
def run(
    place: Place,
    image: str,
    words: tuple[str, ...],
    tty: bool,
    interactive: bool,
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    hostname: str,
    memory: str | None,
    pids_limit: int | None,
    cpus: float | None,
    guest_memory: str | None,
    rootfs: Path | None,
    sealed: bool,
    accel: "Accelerator | None",
    as_json: bool,
) -> int:
    """Run a container in a guest of its own, and relay its streams and exit status.

    ROOTFS is docker-archive:FILE[:ref] or oci:FOLDER[:ref], which become a read-only file system
    that the guest checks block by block against a hash on its command line; or dir:FOLDER.
    Options of run stand before COMMAND.
    """
    from sevkit.guest.boot import writer
    from sevkit.guest.container import container_record, parse_bytes, run_container
    from sevkit.guest.running import Streams
    from sevkit.guest.session import Session
    from sevkit.guest.workload import prepare
    from sevkit.oci.config import PIDS_LIMIT, Overrides
    from sevkit.store.store import default_root
    from sevkit.terminal import size_of

    if rootfs is None and not words:
        raise RecipeError(
            "ROOTFS is missing", hint=f"sevkit run {image} docker-archive:FILE -- COMMAND"
        )
    is_terminal = os.isatty(0)
    if tty and interactive and not is_terminal:
        raise RecipeError("-t with -i: standard input is not a terminal", hint="leave out -t")
    root = f"dir:{rootfs}" if rootfs is not None else words[0]
    overrides = Overrides(
        argv=words if rootfs is not None else words[1:],
        env=env,
        cwd=workdir,
        user=user,
        tty=tty,
        memory_bytes=None if memory is None else parse_bytes("--memory", memory),
        pids=PIDS_LIMIT if pids_limit is None else pids_limit,
        cpus=cpus,
        hostname=hostname,
    )
    folder = place.image(image)
    cache = default_root(os.environ)
    with prepare(root, overrides, sealed=sealed) as workload:
        session = Session.of_image(
            folder,
            memory=guest_memory,
            room_for_bytes=overrides.memory_bytes or 0,
            accel=accel,
            cache=cache / "hosts",
            log=place.output / ".log" / "console.log",
            rootfs=workload.folder,
            disk=workload.image,
            more_cmdline=workload.cmdline,
        )
        for line in session.remarks():
            click.echo(f"sevkit: {line}", err=True)
        outcome = run_container(
            session,
            Streams(
                writer(raw_stream(1)),
                writer(raw_stream(2)),
                stdin=0 if interactive else None,
                tty=size_of(0) if tty else None,
            ),
            config=workload.config,
            terminal=0 if tty and is_terminal and interactive else None,
        )
        if as_json:
            record = {**container_record(session, outcome), "rootfs": workload.record()}
            click.echo(json.dumps(record, indent=2), err=True)
    return outcome.ending.exit_status


@main.command()
@click.argument("image", default="sev-guest", shell_complete=images)
@ACCEL
@click.pass_obj
def probe(place: Place, image: str, accel: "Accelerator | None") -> int:
    """Search this host's view of a guest's memory for a page that the guest wrote.

    Found without SEV, as it must be: exit status 0. Found with SEV: 4.
    """
    from sevkit.guest.plaintext import look
    from sevkit.guest.session import Session
    from sevkit.store.store import default_root

    session = Session.of_image(
        place.image(image),
        accel=accel,
        cache=default_root(os.environ) / "hosts",
        log=place.output / ".log" / "console.log",
    )
    for line in session.remarks():
        click.echo(f"sevkit: {line}", err=True)
    sight = look(session, seed=int.from_bytes(os.urandom(8)))
    for line in sight.lines():
        click.echo(line)
    return 0 if sight.is_as_it_must_be else THE_ANSWER_IS_NO


@main.command("verify-report")
@click.argument("report", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("manifest", type=click.Path(path_type=Path, exists=True))
@click.option("--measurement", metavar="HEX", help="Expect this launch digest instead.")
@click.option("--policy", default=None, metavar="HEX", help="Expect this guest policy.")
@click.option("--vmpl", type=click.IntRange(0, 3), default=0, help="Expect this level (default 0).")
@click.option("--report-data", metavar="HEX", help="Expect these 64 bytes of the caller.")
@click.option(
    "--vcek",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Check the signature by this certificate (PEM, DER).",
)
def verify_report(
    report: Path,
    manifest: Path,
    measurement: str | None,
    policy: str | None,
    vmpl: int,
    report_data: str | None,
    vcek: Path | None,
) -> int:
    """Check an SNP attestation REPORT against the launches that MANIFEST lists.

    REPORT is a file of 1184 bytes, or their hexadecimal digits; MANIFEST a manifest.json or its
    folder. Exit status 4 when something is wrong.
    """
    from sevkit.guest.qemu import POLICIES
    from sevkit.image.manifest import read_manifest
    from sevkit.measure.snp_report import check, measurements_of, parse
    from sevkit.opening import open_at_once

    if measurement is None:
        path = manifest / "manifest.json" if manifest.is_dir() else manifest
        rows = _snp_launches(read_manifest(path), path)
    else:
        rows = [("as --measurement says", _hex("--measurement", measurement, 48).hex())]
    with open_at_once(report) as file:
        attested = parse(file.read(_REPORT_LIMIT_BYTES))
    checks = check(
        attested,
        measurements=measurements_of(rows),
        policy=POLICIES["sev-snp"] if policy is None else _whole("--policy", policy),
        vmpl=vmpl,
        report_data=None if report_data is None else _hex("--report-data", report_data, 64),
        vcek=vcek,
    )
    marks = {True: "ok", False: "WRONG", None: "-"}
    for each in checks:
        click.echo(f"{marks[each.passed]:6} {each.name:13} {each.detail}")
    return THE_ANSWER_IS_NO if any(each.passed is False for each in checks) else 0


def _snp_launches(manifest: "Manifest", path: Path) -> list[tuple[str, str]]:
    """What is launched, and its digest, for each SNP launch of which that covers the kernel."""
    rows = [
        (f"{row['cpu']}, {row['vcpus']} vCPUs", row["digest"])
        for row in manifest.model_dump().get("measurements", ())
        if row["mode"] == "sev-snp" and row["covers"] == "kernel"
    ]
    if not rows:
        raise ImageError(
            f"{path} lists no launch digest for sev-snp that covers the kernel",
            hint="give the digest that you expect: --measurement HEX",
        )
    return rows


def _hex(flag: str, text: str, size: int) -> bytes:
    try:
        made = bytes.fromhex(text)
    except ValueError:
        made = b""
    if len(made) != size:
        raise RecipeError(f"{flag}: {2 * size} hexadecimal digits are wanted")
    return made


def _whole(flag: str, text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise RecipeError(f"{flag}: '{text}' is not a number", hint=f"{flag} 0x30000") from None
