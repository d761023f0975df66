# SPDX-License-Identifier: Apache-2.0
"""Verbs that plan and build: build, list, check, fetch, update, show."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sevkit.cli.common import (
    THE_ANSWER_IS_NO,
    BuildOptions,
    Place,
    build_options,
    fetch_options,
    jobs_option,
    json_option,
    main,
    opened,
    plan_options,
    say_json,
    shown,
    split_words,
    tool_options,
)
from sevkit.cli.words import recipes, targets
from sevkit.errors import INTERRUPTED, RecipeError, SevkitError

if TYPE_CHECKING:
    from sevkit.events import Result
    from sevkit.project.project import Built, Project
    from sevkit.stage import Plan, Stage


@main.command()
@click.argument(
    "words", nargs=-1, metavar="[RECIPE[:STAGE]]... [NAME=VALUE]...", shell_complete=targets
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done.")
@click.option(
    "--exit-code", is_flag=True, help="With -n: exit status 4 when there is anything to do."
)
@build_options
@click.pass_obj
def build(
    place: Place, /, words: tuple[str, ...], dry_run: bool, exit_code: bool, **flags: Any
) -> int:
    """Build images, or single stages of them.

    Without a name: sev-guest. With NAME=VALUE a variable of the recipe is set.
    """
    started, read_since = time.monotonic(), time.time_ns()
    options = BuildOptions(**flags)
    answers: list[Built] = []
    errors: list[SevkitError] = []
    is_stale = False
    with opened(place, options) as project:
        targets, overrides = split_words(words)
        if exit_code and not dry_run:
            raise RecipeError("--exit-code is of a dry run", hint="give -n too")
        settings = options.settings(place)
        for target in targets or ["sev-guest"]:
            name, _, stage = target.partition(":")
            try:
                recipe = project.recipe(name, overrides)
                if dry_run:
                    plan = project.plan(recipe)
                    is_stale |= _say_what_would_be_done(project, plan, stage, force=settings.force)
                    continue
                answers.append(project.build(recipe, [stage] if stage else ["image"], settings))
            except SevkitError as error:
                if not options.keep_going or error.exit_code == INTERRUPTED:
                    raise
                errors.append(error)
        results = [_result(answer, time.monotonic() - started) for answer in answers]
        for result in results:
            project.listener(result)
        if errors:
            raise SevkitError.of_several(errors, f"{len(errors)} of {len(targets)} targets failed")
    is_idle = bool(answers) and all(answer.idle for answer in answers)
    if is_idle and settings.confined and not options.as_json:  # else more is said each time
        from sevkit.store import uptodate

        uptodate.remember(
            place.arguments,
            answer="\n".join(result.text for result in results),
            inputs=project.observed(),
            results=[path for answer in answers for path in answer.files],
            read_since_ns=read_since,
        )
    return THE_ANSWER_IS_NO if exit_code and is_stale else 0


def _result(answer: "Built", seconds: float) -> "Result":
    from sevkit.events import Result

    lines = [f"up to date: {shown(answer.result)}"]
    if not answer.idle:
        lines = [f"built in {seconds:.1f} s: {shown(answer.result)}"]
        lines += [f"  {remark}" for remark in answer.remarks()]
    return Result(answer.plan.recipe.name, answer.result, answer.idle, "\n".join(lines))


def _say_what_would_be_done(project: "Project", plan: "Plan", stage: str, *, force: bool) -> bool:
    """Whether there is anything to do."""
    from sevkit.engine import find_work
    from sevkit.events import Result, TaskPlanned

    work = find_work(plan, project.store, [stage or "image"], force=force)
    name, idle = plan.recipe.name, not work.tasks
    for task in work.tasks.values():
        project.listener(TaskPlanned(name, task.name, task.reason))
    project.listener(Result(name, None, idle, f"{name}: nothing to do" if idle else ""))
    return not idle


@main.command("list")
@json_option
@click.pass_obj
def list_(place: Place, as_json: bool) -> None:
    """List the recipes, and the newest image of each."""
    rows: list[dict[str, str | None]] = []
    with opened(place, BuildOptions()) as project:
        for name in project.library.recipes():
            row: dict[str, str | None] = dict.fromkeys(("version", "summary", "latest", "broken"))
            try:
                recipe = project.recipe(name, {})
            except RecipeError as error:
                row["broken"] = error.what
            else:
                row |= {"version": recipe.version, "summary": recipe.summary}
                latest = place.output / recipe.name / "latest"
                row["latest"] = str(latest.resolve()) if latest.exists() else None
            rows.append({"name": name, **row})
    if as_json:
        say_json(rows)
        return
    width = max((len(str(row["name"])) for row in rows), default=0)
    for row in rows:
        if row["broken"] is not None:
            click.echo(f"{row['name']:{width}}  (broken) {row['broken']}")
            continue
        click.echo(f"{row['name']:{width}}  {row['version']:8}  {row['summary']}")
        if row["latest"] is not None:
            click.echo(f"{'':{width}}  {shown(Path(row['latest']))}")


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...", shell_complete=recipes)
@click.option("--kernel/--no-kernel", default=True, help="Also check the kernel configuration.")
@jobs_option
@json_option
@plan_options
@click.pass_obj
def check(
    place: Place, /, words: tuple[str, ...], kernel: bool, as_json: bool, **flags: Any
) -> None:
    """Check recipes, the files that they name, their kernel configuration and their lock.

    Nothing is built, and only the kernel's source is looked up and fetched; with --no-kernel
    nothing is. Whether packages, locked ones too, can still be had, and hold what the recipe takes
    from them, only `fetch` and `build` tell.
    """
    targets, overrides = split_words(words)
    options = BuildOptions(**flags)
    rows = []
    with opened(place, options) as project:
        for name in targets or ["sev-guest"]:
            recipe = project.recipe(name, overrides)
            absent: list[str] = []
            project.plan_without_asking(recipe)
            if kernel:
                with project.kernel_questions(recipe, options.settings(place)) as questions:
                    absent = questions.check()
            rows.append({"recipe": recipe.name, "correct": True, "absent": absent})
            if not as_json:
                click.echo(f"{recipe.name}: correct")
    if as_json:
        say_json(rows)


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...", shell_complete=recipes)
@fetch_options
@click.pass_obj
def fetch(place: Place, /, words: tuple[str, ...], **flags: Any) -> None:
    """Bring every source into the store, so that `build --offline` can go on from there."""
    from sevkit.events import Result

    options = BuildOptions(**flags)
    with opened(place, options) as project:
        targets, overrides = split_words(words)
        for name in targets or ["sev-guest"]:
            recipe = project.recipe(name, overrides)
            count = project.fetch(recipe, options.settings(place))
            text = f"{recipe.name}: {count} fetched, the others were there"
            project.listener(Result(recipe.name, None, count == 0, text))


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...", shell_complete=recipes)
@tool_options
@json_option
@click.pass_obj
def update(place: Place, /, words: tuple[str, ...], as_json: bool, **flags: Any) -> None:
    """Look up unpinned sources again, and say what is newer."""
    targets, overrides = split_words(words)
    rows = []
    with opened(place, BuildOptions(**flags)) as project:
        for name in targets or ["sev-guest"]:
            recipe = project.recipe(name, overrides)
            changes = project.update(recipe)
            rows.append({"recipe": recipe.name, "changes": changes})
            for line in [] if as_json else changes or ["nothing is newer"]:
                click.echo(f"{recipe.name}: {line}")
    if as_json:
        say_json(rows)


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...", shell_complete=recipes)
@click.option("--why", is_flag=True, help="What changed since each stage was built last.")
@json_option
@plan_options
@click.pass_obj
def show(place: Place, /, words: tuple[str, ...], why: bool, as_json: bool, **flags: Any) -> None:
    """Show the plan of an image: its stages, their keys, and whether they are in the store."""
    targets, overrides = split_words(words)
    rows = []
    with opened(place, BuildOptions(**flags)) as project:
        for name in targets or ["sev-guest"]:
            plan = project.plan(project.recipe(name, overrides))
            stages = [_stage_row(project, plan, stage, why=why) for stage in plan.stages]
            rows.append({"recipe": plan.recipe.name, "stages": stages})
            if not as_json and len(targets) > 1:
                click.echo(f"{plan.recipe.name}:")
            for row in [] if as_json else stages:
                state = "built" if row["built"] else "to build"
                click.echo(f"{row['name']:15} {row['key'][:12]}  {state}")
                for line in row["why"]:
                    click.echo(f"{'':15} {line}")
    if as_json:
        say_json(rows)


def _stage_row(project: "Project", plan: "Plan", stage: "Stage", *, why: bool) -> dict[str, Any]:
    from sevkit.engine import why_stale

    built = project.store.has(stage.key)
    reasons: list[str] = []
    if why and not built:
        differences = why_stale(plan, project.store, stage)
        reasons = ["never built"] if differences is None else differences
    return {"name": stage.name, "key": stage.key, "built": built, "why": reasons}
