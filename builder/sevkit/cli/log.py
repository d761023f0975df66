# SPDX-License-Identifier: Apache-2.0
"""The verb that shows what a step of a build, or a guest's console, has said: log."""

from pathlib import Path

import click

from sevkit.cli.common import Place, main, shown
from sevkit.cli.words import logs
from sevkit.errors import RecipeError
from sevkit.printable import printable


@main.command()
@click.argument("stage", required=False, shell_complete=logs)
@click.option("--path", "only_path", is_flag=True, help="Only say where it is.")
@click.pass_obj
def log(place: Place, stage: str | None, only_path: bool) -> None:
    """Print the newest log of STAGE, or of whatever wrote one last.

    Every step of a build writes one, a guest's console too (console). Control characters are
    spelled out.
    """
    path = _newest(place.output / ".log", stage)
    if only_path:
        click.echo(path)
        return
    click.echo(f"{shown(path)}:", err=True)
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            click.echo(printable(line.rstrip("\n").replace("\t", "    ")))


def _newest(folder: Path, stage: str | None) -> Path:
    """Logs are `<stage>-<12 digits of its key>.log`, or have a name of their own."""
    paths = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime_ns)
    of_stage = [path for path in paths if stage in (None, path.stem, path.stem.rpartition("-")[0])]
    if not of_stage:
        names = {path.stem.rpartition("-")[0] or path.stem for path in paths}
        raise RecipeError(
            f"there is no log{'' if stage is None else f' of {stage}'} in {folder}",
            why=f"there are logs of {', '.join(sorted(names))}" if names else "",
        )
    return of_stage[-1]
