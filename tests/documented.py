# SPDX-License-Identifier: Apache-2.0
"""The commands that README.md and the pages of docs/ show, and how each of them is tested.

What an author does:

- Commands stand in a block fenced with ```` ```sh ````, one a line, as a reader would type them.
  What follows a blank, ``#`` and a blank is a comment; ``exits 7`` at its end is the exit status.
- A page's commands are run in their order by tests/guest/test_documented_commands.py, in a folder
  of the page's own: a project with the page's recipes in it (each ``toml`` block that begins with
  ``# recipes/NAME.toml``), ``rootfs/`` (busybox and its links) and output/ with sev-guest built.
  ``make`` runs in the checkout. Images come from the user's store: a build costs a second.
- A block whose commands another test runs has a line right above its fence that names the test:
  ``<!-- run by tests/guest/test_run.py::test_a_container_runs -->``.
- A block that no test can run says why there: ``<!-- not run: needs a host with SEV-SNP -->``.

tests/unit/test_documentation.py holds every page to it. Runs nothing itself.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))

_RUN_BY = re.compile(r"^<!-- run by (tests/\S+\.py)::(test_\w+) -->$")
_NOT_RUN = re.compile(r"^<!-- not run: (\S.*\S) -->$")
_COMMENT = re.compile(r"\s+# .*$")
_EXITS = re.compile(r"\bexits (\d+)$")
_RECIPE = re.compile(r"# recipes/([\w.-]+\.toml)\n")
_INLINE = re.compile(r"(?<!`)`((?:sevkit|make) [^`]+)`(?!`)")


@dataclass(frozen=True)
class Command:
    """A command of a page; `run_by` is (file, test) and `excuse` a reason, where a page says so."""

    page: str
    line: str
    status: int = 0
    run_by: tuple[str, str] | None = None
    excuse: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it starts sevkit or make, rather than showing a tool of somebody else's."""
        return _starts_ours(self.line)


@dataclass(frozen=True)
class Page:
    """What a page shows: commands to run, recipes, and commands in the middle of its text."""

    name: str
    commands: tuple[Command, ...]
    recipes: dict[str, str]
    inline: tuple[str, ...]
    stray: tuple[str, ...]
    """Lines that start sevkit or make, in a block that is fenced as something other than sh."""


def read(path: Path) -> Page:
    """Take a page apart."""
    name = path.name
    commands: list[Command] = []
    recipes: dict[str, str] = {}
    stray: list[str] = []
    outside: list[str] = []
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if not line.startswith("```"):
            outside.append(line)
            continue
        language = line.removeprefix("```")
        content = "".join(f"{one}\n" for one in iter(lambda: next(lines, "```"), "```"))
        if language == "sh":
            commands += _commands(name, outside[-1] if outside else "", content)
        elif (recipe := _RECIPE.match(content)) and language == "toml":
            recipes[recipe[1]] = content
        else:
            shown = [one.strip().removeprefix("$ ") for one in content.splitlines()]
            stray += [one for one in shown if _starts_ours(one)]
    inline = [one for one in _INLINE.findall(" ".join(outside)) if _starts_ours(one)]
    return Page(name, tuple(commands), recipes, tuple(inline), tuple(stray))


def _commands(page: str, above: str, content: str) -> Iterator[Command]:
    run_by, excuse = _RUN_BY.match(above), _NOT_RUN.match(above)
    for line in content.replace("\\\n", " ").splitlines():
        command = _COMMENT.sub("", line).strip()
        if not command or command.startswith("#"):
            continue
        exits = _EXITS.search(line)
        yield Command(
            page,
            command,
            status=int(exits[1]) if exits else 0,
            run_by=(run_by[1], run_by[2]) if run_by else None,
            excuse=excuse[1] if excuse else None,
        )


def _starts_ours(line: str) -> bool:
    return re.match(r"(?:sudo )?(?:sevkit|make)(?: |$)", line) is not None


def verb(command: str) -> str | None:
    """The verb of a sevkit command line, its global flags passed over; None without one."""
    words = iter(shlex.split(command.replace("…", "x"))[1:])
    for word in words:
        if word in ("-C", "--project", "--output"):
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None
