# SPDX-License-Identifier: Apache-2.0
"""The verb that builds an image again and compares: reproduce."""

import json
from pathlib import Path

import click

from sevkit.cli.common import THE_ANSWER_IS_NO, BuildOptions, Place, main, opened, shown
from sevkit.cli.words import images, recipes
from sevkit.errors import SevkitError
from sevkit.printable import printable


@main.command()
@click.argument("image", shell_complete=images)
@click.argument("recipe", required=False, shell_complete=recipes)
@click.option("-j", "--jobs", type=click.IntRange(1), help="Processes at once.")
@click.option("--offline", is_flag=True, help="Touch no network.")
@click.option("--ci", is_flag=True, help="Plain lines instead of bars.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.option(
    "--reuse",
    multiple=True,
    metavar="STAGE",
    help="Take this stage from the store instead of building it again.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, exists=False),
    metavar="FOLDER",
    help="Leave what was built in this new folder.",
)
@click.pass_obj
def reproduce(
    place: Place,
    image: str,
    recipe: str | None,
    jobs: int | None,
    offline: bool,
    ci: bool,
    as_json: bool,
    reuse: tuple[str, ...],
    keep: Path | None,
) -> int:
    """Build IMAGE again from the sources in its manifest, and compare every file.

    IMAGE is a directory, or the name of a recipe whose latest image is meant; RECIPE says where its
    recipe is now, if not under the image's name. Exit status 0 when all bytes are the same, 4 when
    some differ; diffoscope, where it is installed, explains how.
    """
    from sevkit.project.reproduce import reproduce as build_again

    folder = place.image(image)
    options = BuildOptions(jobs=jobs, offline=offline, ci=ci or as_json)
    with opened(place, options) as project:
        answer = build_again(
            project, folder, options.settings(place), name=recipe, reuse=reuse, keep=keep
        )
    report = place.output / ".log" / f"reproduce-{folder.name}.txt"
    if answer.explanation:
        _write(report, answer.explanation)
    if as_json:
        record = {
            "image": str(folder),
            "same": answer.is_same,
            "reused": list(reuse),
            "files": {file.name: file.difference for file in answer.files},
            "other_inputs": list(answer.other_inputs),
            "causes": list(answer.causes),
            "diffoscope": str(report) if answer.explanation else None,
        }
        click.echo(json.dumps(record, indent=2))
        return 0 if answer.is_same else THE_ANSWER_IS_NO
    for file in answer.files:
        click.echo(f"{file.name:16} {file.difference or 'the same'}")
    if answer.is_same:
        taken = f" (not built again: {', '.join(reuse)})" if reuse else ""
        click.echo(f"{shown(folder)}: reproduced, every byte{taken}")
        return 0
    for line in answer.causes:
        click.echo(f"  {printable(line)}")
    if answer.explanation:
        click.echo(f"how the files differ: {shown(report)}")
    else:
        click.echo("diffoscope is not installed; it would explain how the files differ")
    click.echo(f"{shown(folder)}: not reproduced")
    return THE_ANSWER_IS_NO


def _write(report: Path, text: str) -> None:
    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SevkitError(f"{report}: {error.strerror}") from error
