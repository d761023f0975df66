# SPDX-License-Identifier: Apache-2.0
"""Verbs that start a guest: boot, run, probe."""

import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sevkit.cli.common import THE_ANSWER_IS_NO, Place, main
from sevkit.cli.guest_words import WithCommand
from sevkit.cli.words import images
from sevkit.errors import RecipeError

if TYPE_CHECKING:
    from sevkit.guest.launch import Accelerator

ACCEL = click.option(
    "--accel",
    type=click.Choice(["sev-snp", "sev-es", "sev", "kvm", "tcg"]),
    help="How to run it (default: the best that works here).",
)


@main.command(cls=WithCommand, words_before=1)
@click.argument("image", default="sev-guest", shell_complete=images)
@click.argument("command", metavar="[COMMAND…]", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--rootfs",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder that the command sees as its root (read-only 9p, changes stay in the guest).",
)
@click.option("--memory", help="Memory of the guest: 512M, 2G (default: as the manifest says).")
@ACCEL
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
    from sevkit.guest.boot import writer
    from sevkit.guest.session import Asked

    if console and (command or as_json):
        raise RecipeError(
            "--console takes no COMMAND and no --json: nobody is asked anything",
            hint="leave out --console where /init is sevkit's agent",
        )
    if not console and (until is not None or timeout is not None):
        raise RecipeError("--until and --timeout are of --console", hint="give --console too")
    asked = Asked(memory=memory, accel=accel, rootfs=rootfs, extra_args=qemu_args)
    session = place.session(place.image(image), asked)
    if console:
        session.watch(writer(1), until=until, seconds=timeout)
        return 0
    outcome = session.run(
        list(command),
        stdout=writer(1),
        stderr=writer(2),
        stdin=_piped_input() if command else None,
    )
    if as_json:
        click.echo(json.dumps(session.record(outcome), indent=2), err=bool(command))
    elif not command:
        for line in session.summary(outcome):
            click.echo(line)
    return outcome.exit_status


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
    from sevkit.guest.container import container_record, our_streams, parse_bytes, run_container
    from sevkit.guest.workload import prepare
    from sevkit.oci.config import PIDS_LIMIT, Overrides

    if rootfs is None and not words:
        words = ("run", image, "docker-archive:FILE", "--", "COMMAND")
        raise RecipeError("ROOTFS is missing", hint=place.command(*words))
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
    streams = our_streams(tty=tty, interactive=interactive)
    folder = place.image(image)
    with prepare(root, overrides, sealed=sealed) as workload:
        session = place.session(folder, workload.asked(memory=guest_memory, accel=accel))
        outcome = run_container(session, streams, config=workload.config)
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
    from sevkit.guest.session import Asked

    session = place.session(place.image(image), Asked(accel=accel))
    sight = look(session, seed=int.from_bytes(os.urandom(8)))
    for line in sight.lines():
        click.echo(line)
    return 0 if sight.is_as_it_must_be else THE_ANSWER_IS_NO


def _piped_input() -> int | None:
    """Standard input unless it is a terminal, closed, or /dev/null."""
    try:
        status = os.fstat(0)
    except OSError:
        return None
    is_null = stat.S_ISCHR(status.st_mode) and status.st_rdev == Path(os.devnull).stat().st_rdev
    return None if is_null or os.isatty(0) else 0
