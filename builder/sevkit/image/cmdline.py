# SPDX-License-Identifier: Apache-2.0
"""The kernel command line of a launch, and the parameters that the kernel reads from one.

What a launch measures is the whole line, also where the kernel would cut it off: so a line that the
kernel does not read as it stands is never handed over.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from sevkit.errors import ImageError, RecipeError
from sevkit.image.manifest import MANIFEST
from sevkit.image.shape import Manifest
from sevkit.measure.digests import cmdline_problem

_END = "--"
"""kernel/params.c: parse_args(); what follows is for init."""


def full_cmdline(
    manifest: Manifest, folder: Path, more: Sequence[str] = (), instead: str | None = None
) -> str:
    """The command line of the image in `folder`, or another one that is launched `instead`, and
    what is appended to it, each after a blank.

    Raises `ImageError` when the manifest's own can't be given to a kernel, `RecipeError` when it
    can't with `more`.
    """
    if problem := cmdline_problem(manifest.cmdline):
        raise ImageError(
            f"{folder / MANIFEST}: cmdline {problem}",
            hint="build the image again: it was edited",
        )
    base = manifest.cmdline if instead is None else instead
    cmdline = " ".join(words for words in [base, *more] if words)
    if problem := cmdline_problem(cmdline):
        raise RecipeError(f"the command line that is launched {problem}")
    return cmdline


def parameters(cmdline: str) -> Iterator[tuple[str, str | None]]:
    """Each parameter that the kernel reads, and its value; None without ``=``.

    As next_arg() in lib/cmdline.c takes them apart: quotes hold blanks together, and come off a
    word or a value that begins with one.
    """
    for word in _words(cmdline):
        text = word.removeprefix('"')
        equals = text.find("=", 1)
        name, value = (text, None) if equals < 0 else (text[:equals], text[equals + 1 :])
        if value is not None and value.startswith('"'):
            value = value[1:].removesuffix('"')
        elif value is not None and text != word:
            value = value.removesuffix('"')
        elif text != word:
            name = name.removesuffix('"')
        if (name, value) == (_END, None):
            return
        yield name, value


def _words(cmdline: str) -> Iterator[str]:
    word, is_open = "", False
    for character in cmdline:
        if character.isspace() and not is_open:
            if word:
                yield word
            word = ""
            continue
        is_open ^= character == '"'
        word += character
    if word:
        yield word
