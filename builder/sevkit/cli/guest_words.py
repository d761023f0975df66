# SPDX-License-Identifier: Apache-2.0
"""A verb whose last words are a command for the guest: its options are the command's own.

As with ssh and docker, `sevkit boot IMAGE ls -l` needs no `--`; an option of the verb itself
stands before the command.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import click


class WithCommand(click.Command):
    """Takes everything behind its first `words_before` words as it is.

    One word less is its own where the option `instead_of_a_word` is given.
    """

    def __init__(
        self, *args: Any, words_before: int, instead_of_a_word: str | None = None, **attrs: Any
    ):
        super().__init__(*args, **attrs)
        self._words_before = words_before
        self._instead = instead_of_a_word

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the verb's own words and options, and put `--` before the rest."""
        start = self._start_of_command(args)
        if start < len(args):
            args = [*args[:start], "--", *args[start:]]
        return super().parse_args(ctx, args)

    def _start_of_command(self, args: Sequence[str]) -> int:
        own = self._words_before
        rest: Iterator[tuple[int, str]] = iter(enumerate(args))
        for index, word in rest:
            if word == "--":
                return len(args)
            if word == "-" or not word.startswith("-"):
                if own == 0:
                    return index
                own -= 1
            else:
                if self._instead in (word, word.partition("=")[0]):
                    own -= 1
                if self._takes_next(word):
                    next(rest, None)
        return len(args)

    def _takes_next(self, word: str) -> bool:
        """Whether the word behind the option `word` is its value."""
        options = {
            name: option
            for option in self.params
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        }
        if word.startswith("--"):
            return word in options
        first = next((at for at, letter in enumerate(word) if f"-{letter}" in options), None)
        return first == len(word) - 1
