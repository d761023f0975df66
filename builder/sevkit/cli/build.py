# SPDX-License-Identifier: Apache-2.0
"""Verbs that plan and build: build, list, check, fetch, update, show."""

import time
from typing import TYPE_CHECKING, Any

import click

from sevkit.cli.common import (
    BuildOptions,
    Place,
    build_options,
    fetch_options,
    main,
    opened,
    plan_options,
    shown,
    split_words,
    tool_options,
)
from sevkit.errors import INTERRUPTED, RecipeError, SevkitError

if TYPE_CHECKING:
    from sevkit.events import Result
    from sevkit.project.project import Built, Project
    from sevkit.stage import Plan


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE[:STAGE]]... [NAME=VALUE]...")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done.")
@build_options
@click.pass_obj
def build(place: Place, /, words: tuple[str, ...], dry_run: bool, **flags: Any) -> None:
    """Build images, or single stages of them.

    Without a name: sev-guest. With NAME=VALUE a variable of the recipe is set.
    """
    started, read_since = time.monotonic(), time.time_ns()
    options = BuildOptions(**flags)
    answers: list[Built] = []
    errors: list[SevkitError] = []
    with opened(place, options) as project:
        targets, overrides = split_words(words)
        settings = options.settings(place)
        for target in targets or ["sev-guest"]:
            name, _, stage = target.partition(":")
            try:
                recipe = project.recipe(name, overrides)
                if dry_run:
                    plan = project.plan(recipe)
                    _say_what_would_be_done(project, plan, stage, force=settings.force)
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


def _result(answer: "Built", seconds: float) -> "Result":
    from sevkit.events import Result

    lines = [f"up to date: {shown(answer.result)}"]
    if not answer.idle:
        lines = [f"built in {seconds:.1f} s: {shown(answer.result)}"]
        lines += [f"  {remark}" for remark in answer.remarks()]
    return Result(answer.plan.recipe.name, answer.result, answer.idle, "\n".join(lines))


def _say_what_would_be_done(project: "Project", plan: "Plan", stage: str, *, force: bool) -> None:
    from sevkit.engine import find_work
    from sevkit.events import Result, TaskPlanned

    work = find_work(plan, project.store, [stage or "image"], force=force)
    name, idle = plan.recipe.name, not work.tasks
    for task in work.tasks.values():
        project.listener(TaskPlanned(name, task.name, task.reason))
    project.listener(Result(name, None, idle, f"{name}: nothing to do" if idle else ""))


@main.command("list")
@click.pass_obj
def list_(place: Place) -> None:
    """List the recipes, and the newest image of each."""
    with opened(place, BuildOptions()) as project:
        names = project.library.recipes()
        width = max(map(len, names), default=0)
        for name in names:
            try:
                recipe = project.recipe(name, {})
            except RecipeError as error:
                click.echo(f"{name:{width}}  (broken) {error.what}")
                continue
            click.echo(f"{name:{width}}  {recipe.version:8}  {recipe.summary}")
            latest = place.output / recipe.name / "latest"
            if latest.exists():
                click.echo(f"{'':{width}}  {shown(latest)} → {latest.resolve().name}")


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...")
@click.option("--kernel/--no-kernel", default=True, help="Also check the kernel configuration.")
@plan_options
@click.pass_obj
def check(place: Place, /, words: tuple[str, ...], kernel: bool, **flags: Any) -> None:
    """Check recipes, their kernel configuration and their lock, without building."""
    targets, overrides = split_words(words)
    options = BuildOptions(**flags)
    with opened(place, options) as project:
        for name in targets or ["sev-guest"]:
            recipe = project.recipe(name, overrides)
            if project.locked:
                project.plan(recipe)
            if kernel:
                with project.kernel_questions(recipe, options.settings(place)) as questions:
                    questions.check()
            click.echo(f"{recipe.name}: correct")


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...")
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
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...")
@tool_options
@click.pass_obj
def update(place: Place, /, words: tuple[str, ...], **flags: Any) -> None:
    """Look up unpinned sources again, and say what is newer."""
    targets, overrides = split_words(words)
    with opened(place, BuildOptions(**flags)) as project:
        for name in targets or ["sev-guest"]:
            for line in project.update(project.recipe(name, overrides)):
                click.echo(f"{name}: {line}")


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...")
@click.option("--why", is_flag=True, help="What changed since each stage was built last.")
@plan_options
@click.pass_obj
def show(place: Place, /, words: tuple[str, ...], why: bool, **flags: Any) -> None:
    """Show the plan of an image: its stages, their keys, and whether they are in the store."""
    from sevkit.engine import why_stale

    targets, overrides = split_words(words)
    with opened(place, BuildOptions(**flags)) as project:
        for name in targets or ["sev-guest"]:
            plan = project.plan(project.recipe(name, overrides))
            if len(targets) > 1:
                click.echo(f"{plan.recipe.name}:")
            for stage in plan.stages:
                state = "built" if project.store.has(stage.key) else "to build"
                click.echo(f"{stage.name:15} {stage.key[:12]}  {state}")
                if why and not project.store.has(stage.key):
                    differences = why_stale(plan, project.store, stage)
                    for line in ["never built"] if differences is None else differences:
                        click.echo(f"{'':15} {line}")
