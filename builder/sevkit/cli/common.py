# SPDX-License-Identifier: Apache-2.0
"""What the verbs share: the top command, flags of every build, the project they work on."""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sevkit import __version__
from sevkit.cli.verbs import Verbs
from sevkit.errors import INTERRUPTED, HostError, RecipeError, SevkitError
from sevkit.printable import printable

if TYPE_CHECKING:
    from sevkit.cli.listeners import BuildListener
    from sevkit.engine import Settings
    from sevkit.guest.session import Asked, Session
    from sevkit.project.project import Project

THE_ANSWER_IS_NO = 4
"""Exit status of a verb that has found out what it was asked, where the answer is no."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Place:
    """The folder of the project, where its results go, and the command line that says so."""

    folder: Path
    output: Path
    arguments: tuple[str, ...]

    def image(self, name: str) -> Path:
        """The image directory that `name` means. Raises `RecipeError` when there is none."""
        from sevkit.image.output import find_image
        from sevkit.recipe.library import Library

        is_recipe = name in Library.of(self.folder).recipes()
        hint = self.command("build", name) if is_recipe else self.command("list")
        return find_image(name, self.output, hint)

    def command(self, *words: str) -> str:
        """The command line that has `words` done for this project, to be pasted."""
        from sevkit.project.command_line import command_line

        return command_line(self.folder, self.output, *words)

    def session(self, folder: Path, asked: "Asked") -> "Session":
        """The image directory `folder`, ready to boot; tells what a user should know before.

        Raises as `Session.of_image` does.
        """
        from sevkit.guest.session import Session
        from sevkit.store.store import default_root

        cache, log = default_root(os.environ) / "hosts", self.output / ".log" / "console.log"
        session = Session.of_image(folder, asked, cache=cache, log=log)
        for line in session.remarks():
            click.echo(f"sevkit: {line}", err=True)
        return session


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
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
    context.obj = Place(folder, (output or folder / "output").absolute(), context.obj or ())


def jobs_option(function: F) -> F:
    """How many processes may run at once."""
    return click.option("-j", "--jobs", type=click.IntRange(1), help="Processes at once.")(function)


def json_option(function: F) -> F:
    """Whether a verb's answer is one JSON document on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="The answer as JSON.")(function)


def say_json(answer: object) -> None:
    """Print the answer of a verb with `json_option`."""
    click.echo(json.dumps(answer, indent=2))


def build_options(function: F) -> F:
    """The flags of every verb that may build."""
    always = click.option("-B", "--always-make", is_flag=True, help="Build even what is there.")
    return jobs_option(always(fetch_options(function)))


def fetch_options(function: F) -> F:
    """The flags of every verb that fetches, and says how far it is."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on stdout."),
        click.option("--ci", is_flag=True, help="Plain lines instead of bars."),
        click.option("-k", "--keep-going", is_flag=True, help="Go on with what still can be done."),
    ):
        function = option(function)
    return plan_options(function)


def plan_options(function: F) -> F:
    """The flags of every verb that plans a build: whom it may ask, and what decides the keys."""
    offline = click.option("--offline", is_flag=True, help="Touch no network.")
    locked = click.option("--locked", is_flag=True, help="Refuse what is not in the lock file.")
    return offline(locked(tool_options(function)))


def tool_options(function: F) -> F:
    """The flags of every verb that asks which tools build, and how they are confined."""
    toolchain = click.option(
        "--toolchain",
        default="host",
        metavar="host|debian:SUITE",
        help="Whose compilers build: this host's, or pinned packages of a Debian release.",
    )
    sandbox = click.option(
        "--sandbox",
        type=click.Choice(["bwrap", "none"]),
        default="bwrap",
        help="How build steps are confined.",
    )
    return toolchain(sandbox(function))


@dataclass(frozen=True)
class BuildOptions:
    """The values of `build_options`, or of some of them."""

    jobs: int | None = None
    keep_going: bool = False
    always_make: bool = False
    offline: bool = False
    ci: bool = False
    as_json: bool = False
    sandbox: str = "bwrap"
    toolchain: str = "host"
    locked: bool = False

    def settings(self, place: Place) -> "Settings":
        """The same for the engine."""
        from sevkit.engine import Settings

        return Settings(
            jobs=self.jobs or len(os.sched_getaffinity(0)),
            logs=place.output / ".log",
            confined=self.sandbox == "bwrap",
            force=self.always_make,
            keep_going=self.keep_going,
        )

    def listener(self) -> "BuildListener":
        """Bars on a terminal, else lines; JSON when asked."""
        from sevkit.cli.listeners import JsonLines, PlainLines, ProgressBars

        if self.as_json:
            return JsonLines(sys.stdout)
        if self.ci or not sys.stderr.isatty():
            return PlainLines(sys.stderr, sys.stdout)
        return ProgressBars(sys.stderr, sys.stdout)


@contextlib.contextmanager
def opened(place: Place, options: BuildOptions) -> Iterator["Project"]:
    """The project of `place`, with a listener that holds the terminal and learns of failures."""
    from sevkit.events import BuildFailed, Notice
    from sevkit.project.project import Project
    from sevkit.store.store import default_root
    from sevkit.toolchain import toolchain

    with options.listener() as listener:
        try:
            if options.sandbox == "none":
                listener(Notice("--sandbox=none: build steps can read this host and its network"))
            root = default_root(os.environ)
            tools = toolchain(options.toolchain, options.sandbox)
            yield Project(
                *(place.folder, place.output, root, listener, tools),
                locked=options.locked,
                offline=options.offline,
            )
        except SevkitError as error:
            listener(BuildFailed.of(error))
            raise
        except KeyboardInterrupt:
            listener(BuildFailed("interrupted", "", "", None, INTERRUPTED))
            raise
        except BrokenPipeError:
            raise
        except OSError as error:
            listener(BuildFailed.of(failure(error)))
            raise


def failure(error: OSError) -> SevkitError:
    """What the operating system refused, as an error of ours; a full disk is the host's."""
    place = f"{error.filename}: " if error.filename else ""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return (HostError if is_full else SevkitError)(f"{place}{error.strerror or error}")


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Targets and NAME=VALUE settings of a command line, make-style in any order."""
    targets: list[str] = []
    overrides: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            targets.append(word)
        elif overrides.setdefault(name, value) != value:
            raise RecipeError(f"{name} is set twice, to '{overrides[name]}' and to '{value}'")
    return targets, overrides


def shown(path: Path) -> str:
    """A path for people, from the current folder on where it lies in it."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return printable(str(path))
