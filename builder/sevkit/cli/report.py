# SPDX-License-Identifier: Apache-2.0
"""The verb that reads what a guest attested: verify-report."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sevkit.cli.common import THE_ANSWER_IS_NO, main
from sevkit.errors import ImageError, RecipeError
from sevkit.printable import printable

if TYPE_CHECKING:
    from sevkit.image.manifest import Manifest

_REPORT_LIMIT_BYTES = 1 << 16


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
        policy=POLICIES["sev-snp"] if policy is None else _policy(policy),
        vmpl=vmpl,
        report_data=None if report_data is None else _hex("--report-data", report_data, 64),
        vcek=vcek,
    )
    marks = {True: "ok", False: "WRONG", None: "-"}
    for each in checks:
        click.echo(printable(f"{marks[each.passed]:6} {each.name:13} {each.detail}"))
    return THE_ANSWER_IS_NO if any(each.passed is False for each in checks) else 0


def _snp_launches(manifest: "Manifest", path: Path) -> list[tuple[str, str]]:
    """What is launched, and its digest, for each SNP launch of which that covers the kernel."""
    rows = [
        (f"{row.cpu}, {row.vcpus} vCPUs", row.digest)
        for row in manifest.trusted_launches("sev-snp")
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


def _policy(text: str) -> int:
    if not re.fullmatch(r"(0[xX])?[0-9a-fA-F]{1,16}", text):
        raise RecipeError("--policy: up to 16 hexadecimal digits are wanted", hint="--policy 30000")
    return int(text, 16)
