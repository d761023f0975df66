# SPDX-License-Identifier: Apache-2.0
"""Verbs and flags. The only module that prints, asks the environment, or decides an exit status."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sevkit import __version__
from sevkit.errors import RecipeError, SevkitError

if TYPE_CHECKING:
    from sevkit.engine import Settings
    from sevkit.listeners import BuildListener
    from sevkit.project import Project
    from sevkit.stage import Plan

F = TypeVar("F", bound=Callable[..., Any])


def run(arguments: Sequence[str]) -> int:
    """Carry out a command line and return its exit status.

    0 done, 1 the build failed, 2 the recipe or the call is wrong, 3 something is missing on this
    host, 130 interrupted; `boot` gives the status of the command in the guest.
    """
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        status = main.main(list(arguments), prog_name="sevkit", standalone_mode=False)
    except SevkitError as error:
        click.echo(f"sevkit: error: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("sevkit: interrupted", err=True)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status if isinstance(status, int) else 0


def _as_interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


@dataclass(frozen=True)
class Place:
    """The folder of the project and where its results go."""

    folder: Path
    output: Path


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sevkit")
@click.option(
    "-C",
    "--project",
    "folder",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=".",
    help="The folder with recipes/, kernel-configs/, patches/ (default: this one).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where images and logs go (default: output/ in the project).",
)
@click.pass_context
def main(context: click.Context, folder: Path, output: Path | None) -> None:
    """Build the guest side of AMD SEV confidential containers.

    One recipe in; kernel, initramfs, firmware and a manifest out. Recipes are named as in
    `sevkit list` or by their path; variables are set as NAME=VALUE.
    """
    folder = folder.absolute()
    context.obj = Place(folder, (output or folder / "output").absolute())


def build_options(function: F) -> F:
    """The flags of every verb that may build."""
    for option in reversed(
        [
            click.option("-j", "--jobs", type=click.IntRange(1), help="Processes at once."),
            click.option("-k", "--keep-going", is_flag=True, help="Build what still can be."),
            click.option("-B", "--always-make", is_flag=True, help="Build even what is there."),
            click.option("--offline", is_flag=True, help="Touch no network."),
            click.option("--ci", is_flag=True, help="Plain lines instead of bars."),
            click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on stdout."),
            click.option(
                "--sandbox",
                type=click.Choice(["bwrap", "none"]),
                default="bwrap",
                help="How build steps are confined.",
            ),
        ]
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class BuildOptions:
    """The values of `build_options`."""

    jobs: int | None
    keep_going: bool
    always_make: bool
    offline: bool
    ci: bool
    as_json: bool
    sandbox: str

    def settings(self, place: Place) -> "Settings":
        """The same for the engine."""
        from sevkit.engine import Settings

        return Settings(
            jobs=self.jobs or len(os.sched_getaffinity(0)),
            logs=place.output / ".log",
            confined=self.sandbox == "bwrap",
            offline=self.offline,
            force=self.always_make,
            keep_going=self.keep_going,
        )

    def listener(self) -> "BuildListener":
        """Bars on a terminal, else lines; JSON when asked."""
        from sevkit.listeners import JsonLines, PlainLines, ProgressBars

        if self.as_json:
            return JsonLines(sys.stdout)
        if self.ci or not sys.stderr.isatty():
            return PlainLines(sys.stderr)
        return ProgressBars(sys.stderr)


@contextlib.contextmanager
def opened(place: Place, options: BuildOptions) -> Iterator["Project"]:
    """The project of `place`, with a listener that holds the terminal."""
    from sevkit.events import Notice
    from sevkit.project import Project
    from sevkit.store import Store, default_root

    with options.listener() as listener:
        if options.sandbox == "none":
            listener(Notice("--sandbox=none: build steps can read this host and its network"))
        yield Project(place.folder, place.output, Store(default_root(os.environ)), listener)


def quiet(*, offline: bool = False) -> BuildOptions:
    """The options of a verb that builds only as a means."""
    return BuildOptions(None, False, False, offline, False, False, "bwrap")


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Targets and NAME=VALUE settings of a command line, make-style in any order."""
    targets = [word for word in words if "=" not in word]
    return targets, dict(word.split("=", 1) for word in words if "=" in word)


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE[:STAGE]]... [NAME=VALUE]...")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done.")
@build_options
@click.pass_obj
def build(place: Place, words: tuple[str, ...], dry_run: bool, **flags: Any) -> int:
    """Build images, or single stages of them.

    Without a name: sev-guest. With NAME=VALUE a variable of the recipe is set.
    """
    started, read_since = time.monotonic(), time.time_ns()
    options = BuildOptions(**flags)
    targets, overrides = split_words(words)
    answers = []
    with opened(place, options) as project:
        settings = options.settings(place)
        for target in targets or ["sev-guest"]:
            name, _, stage = target.partition(":")
            recipe = project.recipe(name, overrides)
            if dry_run:
                _say_what_would_be_done(project, recipe.name, project.plan(recipe), stage, settings)
                continue
            answers.append(project.build(recipe, [stage] if stage else ["image"], settings))
    if dry_run:
        return 0
    idle = all(answer.idle for answer in answers)
    if idle and not options.as_json:
        from sevkit import uptodate

        text = "\n".join(f"up to date: {_shown(answer.result)}" for answer in answers)
        uptodate.remember(
            sys.argv[1:],
            answer=text,
            inputs=project.observed(),
            results=[path for answer in answers for path in answer.files],
            read_since_ns=read_since,
        )
        click.echo(text)
    elif not options.as_json:
        seconds = time.monotonic() - started
        for answer in answers:
            click.echo(f"built in {seconds:.1f} s: {_shown(answer.result)}")
    return 0


def _say_what_would_be_done(project: "Project", plan: "Plan", stage: str, *, force: bool) -> None:
    from sevkit.engine import find_work

    work = find_work(plan, project.store, [stage or "image"], force=force)
    for task in work.tasks.values():
        click.echo(f"{plan.recipe.name}: {task.name}: {task.reason}")
    if not work.tasks:
        click.echo(f"{plan.recipe.name}: nothing to do")


def _shown(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


@main.command("list")
@click.pass_obj
def list_(place: Place) -> None:
    """List the recipes, and the newest image of each."""
    with opened(place, quiet()) as project:
        for name in project.library.recipes():
            try:
                recipe = project.recipe(name, {})
                summary = f"{recipe.version:10} {recipe.summary}"
            except RecipeError as error:
                summary = f"(broken) {error.what}"
            click.echo(f"{name:22} {summary}")
            latest = place.output / name / "latest"
            if latest.exists():
                click.echo(f"{'':22} {_shown(latest)} → {latest.resolve().name}")


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...")
@click.option("--kernel/--no-kernel", default=True, help="Also check the kernel configuration.")
@click.pass_obj
def check(place: Place, words: tuple[str, ...], kernel: bool) -> None:
    """Check recipes, and their kernel configuration, without building."""
    targets, overrides = split_words(words)
    with opened(place, quiet()) as project:
        for name in targets or ["sev-guest"]:
            recipe = project.recipe(name, overrides)
            if kernel:
                with project.kconfig(recipe) as tree:
                    tree.check()
            click.echo(f"{recipe.name}: correct")


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...")
@build_options
@click.pass_obj
def fetch(place: Place, words: tuple[str, ...], **flags: Any) -> None:
    """Bring every source into the store, so that `build --offline` can go on from there."""
    targets, overrides = split_words(words)
    options = BuildOptions(**flags)
    with opened(place, options) as project:
        for name in targets or ["sev-guest"]:
            recipe = project.recipe(name, overrides)
            count = project.fetch(recipe, options.settings(place))
            click.echo(f"{recipe.name}: {count} fetched, the others were there")


@main.command()
@click.argument("words", nargs=-1, metavar="[RECIPE]... [NAME=VALUE]...")
@click.pass_obj
def update(place: Place, words: tuple[str, ...]) -> None:
    """Look up unpinned sources again, and say what is newer."""
    targets, overrides = split_words(words)
    with opened(place, quiet()) as project:
        for name in targets or ["sev-guest"]:
            for line in project.update(project.recipe(name, overrides)):
                click.echo(f"{name}: {line}")


@main.command()
@click.argument("words", nargs=-1, metavar="RECIPE [NAME=VALUE]...")
@click.option("--why", is_flag=True, help="What changed since each stage was built last.")
@click.pass_obj
def show(place: Place, words: tuple[str, ...], why: bool) -> None:
    """Show the plan of an image: its stages, their keys, and whether they are in the store."""
    from sevkit.engine import why_stale

    targets, overrides = split_words(words)
    with opened(place, quiet()) as project:
        for name in targets or ["sev-guest"]:
            plan = project.plan(project.recipe(name, overrides))
            for stage in plan.stages:
                state = "built" if project.store.has(stage.key) else "to build"
                click.echo(f"{stage.name:15} {stage.key[:12]}  {state}")
                if why and not project.store.has(stage.key):
                    differences = why_stale(plan, project.store, stage)
                    for line in ["never built"] if differences is None else differences:
                        click.echo(f"{'':15} {line}")


@main.command()
@click.option("--store", "whole_store", is_flag=True, help="Empty the store too.")
@click.pass_obj
def clean(place: Place, whole_store: bool) -> None:
    """Delete images and logs of this project; with --store everything that was fetched or built."""
    import shutil

    from sevkit.store import default_root

    folders = [place.output, *([default_root(os.environ)] if whole_store else [])]
    for folder in folders:
        if folder.is_dir():
            shutil.rmtree(folder)
            click.echo(f"deleted {_shown(folder)}")


@main.command()
@click.argument("path", metavar="PATH")
@click.option("--image", default="sev-guest", help="An image directory or a recipe's name.")
@click.pass_obj
def why(place: Place, path: str, image: str) -> None:
    """Say what brought PATH into the initramfs: digest, package, licence, chain."""
    from sevkit.contents import why as explain
    from sevkit.output import find_image

    contents = json.loads((find_image(image, place.output) / "contents.json").read_bytes())
    for line in explain(contents, path):
        click.echo(line)


@main.command()
@click.argument("kind", type=click.Choice(["recipe", "manifest"]))
def schema(kind: str) -> None:
    """Print the JSON Schema of a recipe or a manifest."""
    if kind == "recipe":
        from sevkit.recipe_file import schema as made
    else:
        from sevkit.manifest import schema as made
    click.echo(json.dumps(made(), indent=2))


@main.command()
@click.argument("image", default="sev-guest")
@click.pass_obj
def verify(place: Place, image: str) -> int:
    """Check every byte of an image directory against its manifest."""
    from sevkit.manifest import verify as differences
    from sevkit.output import find_image

    folder = find_image(image, place.output)
    found = differences(folder)
    for line in found:
        click.echo(line)
    click.echo(f"{_shown(folder)}: {'as published' if not found else f'{len(found)} differ'}")
    return 1 if found else 0
