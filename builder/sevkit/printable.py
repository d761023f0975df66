# SPDX-License-Identifier: Apache-2.0
"""Text of others made fit for a terminal, which takes some characters for commands."""


def printable(text: str) -> str:
    """`text` with what can't be printed spelled out: ``\\n``, ``\\x1b``, ``\\u202e``."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "backslashreplace").decode()
        for each in text
    )
