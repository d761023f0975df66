# SPDX-License-Identifier: Apache-2.0
"""On which line of a TOML file each key was written (TOML v1.0.0).

`tomllib` parses and forgets where; this scanner remembers where and decides nothing. It expects
text that `tomllib` accepted, with line feeds only.
"""

import re
import tomllib
from bisect import bisect_right

Path = tuple[str, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_SCALAR = re.compile(r"[^,\]}#\n]*")
_STRINGS = (
    re.compile(r'"""(?:\\.|[^\\])*?"""(?:"{0,2})', re.S),
    re.compile(r"'''.*?'''(?:'{0,2})", re.S),
    re.compile(r'"(?:\\.|[^"\\\n])*"'),
    re.compile(r"'[^'\n]*'"),
)


def key_lines(text: str) -> dict[Path, int]:
    """Path of each key, table and array element → its line, counted from 1.

    An array element's last part is its number: ``("kernel", "configs", "0")``.
    """
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str):
        self._text = text
        self._at = 0
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._lines: dict[Path, int] = {}
        self._table: Path = ()
        self._array_tables: dict[Path, int] = {}

    def scan(self) -> dict[Path, int]:
        while True:
            self._skip(_BLANK)
            if self._at >= len(self._text):
                return self._lines
            if self._peek() == "[":
                self._header()
            else:
                self._pair(self._table)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError(f"unexpected text at character {self._at}")
        self._at = match.end()
        return match[0]

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _note(self, path: Path, position: int) -> None:
        line = bisect_right(self._starts, position)
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], line)

    def _header(self) -> None:
        start = self._at
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        key = self._key()
        self._at += 2 if is_array else 1
        path: Path = ()
        for number, part in enumerate(key):
            path = (*path, part)
            if is_array and number == len(key) - 1:
                self._array_tables[path] = self._array_tables.get(path, 0) + 1
            if path in self._array_tables:
                path = (*path, str(self._array_tables[path] - 1))
        self._table = path
        self._note(path, start)

    def _key(self) -> Path:
        parts = []
        while True:
            self._skip(_SPACE)
            if self._peek() in ('"', "'"):
                parts.append(str(tomllib.loads(f"key = {self._string()}")["key"]))
            else:
                parts.append(self._skip(_BARE))
            self._skip(_SPACE)
            if self._peek() != ".":
                return tuple(parts)
            self._at += 1

    def _string(self) -> str:
        for pattern in _STRINGS:
            match = pattern.match(self._text, self._at)
            if match:
                self._at = match.end()
                return match[0]
        raise ValueError(f"unclosed string at character {self._at}")

    def _pair(self, table: Path) -> None:
        start = self._at
        path = (*table, *self._key())
        self._note(path, start)
        self._at += 1  # the equals sign
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip(_SPACE)
        match self._peek():
            case '"' | "'":
                self._string()
            case "[":
                self._items(path, "]")
            case "{":
                self._items(path, "}")
            case _:
                self._skip(_SCALAR)

    def _items(self, path: Path, closing: str) -> None:
        self._at += 1
        number = 0
        while True:
            self._skip(_BLANK)
            if self._peek() == closing:
                self._at += 1
                return
            if closing == "]":
                element = (*path, str(number))
                self._note(element, self._at)
                self._value(element)
                number += 1
            else:
                self._pair(path)
            self._skip(_BLANK)
            if self._peek() == ",":
                self._at += 1
            elif self._peek() != closing:
                raise ValueError(f"unexpected text at character {self._at}")
