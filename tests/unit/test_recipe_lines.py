# SPDX-License-Identifier: Apache-2.0
"""The line of every key, in each of TOML's ways to write one."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevkit.recipe.toml_lines import key_lines

TEXT = '''\
# comment with "quotes" and [brackets]
a = 1
b.c = "x # no comment"   # comment

[t]  # comment
d = """
[not.a.table]
e = 1 \\""" "\\"""""
f = \'\'\'
g = 1\'\'\'
h = [
  1, # one
  "]",

  { i = 1, j = [2, 3] },
]
k = { l.m = 1, "n o" = { p = [] } }
[t.q."r.s"]
"\\u0075\\"" = 1979-05-27T07:32:00Z
'v' = +inf
[[w]]
x = 1
[[w]]
x = 2
[w.y]
z = 3
[ aa . bb ]
cc=true
'''


def paths(value: Any, at: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Every path that a parsed document has."""
    found = {at} if at else set()
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= paths(inner, (*at, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            found |= paths(inner, (*at, str(number)))
    return found


def test_every_way_to_write_a_key_is_at_its_line() -> None:
    lines = key_lines(TEXT)
    assert set(lines) == paths(tomllib.loads(TEXT))
    expected = {
        "a": 2, "b": 3, "b c": 3, "t": 5, "t d": 6, "t f": 9, "t h": 11, "t h 0": 12, "t h 1": 13,
        "t h 2": 15, "t h 2 i": 15, "t h 2 j": 15, "t h 2 j 1": 15, "t k": 17, "t k l m": 17,
        "t q": 18, "w": 21, "w 0 x": 22, "w 1": 23, "w 1 x": 24, "w 1 y": 25, "w 1 y z": 26,
        "aa bb": 27, "aa bb cc": 28,
    }  # fmt: skip
    assert {key: lines[tuple(key.split())] for key in expected} == expected
    assert lines["t", "k", "n o", "p"] == 17
    assert lines["t", "q", "r.s"] == 18
    assert lines["t", "q", "r.s", 'u"'] == 19
    assert lines["t", "q", "r.s", "v"] == 20


@pytest.mark.parametrize("text", ["", "\n\n", "# only this", "a=1", "a=[]\nb={}"])
def test_small_documents_are_read(text: str) -> None:
    assert set(key_lines(text)) == paths(tomllib.loads(text))


KEYS = st.sampled_from(["a", "b-1", '"q.r"', "'l'", '"\\u0041"', '""'])
STRINGS = st.sampled_from(
    [
        '"x"',
        "'y'",
        '"""\nm\n"""',
        "'''\n#n\n'''",
        '"\\"]},#"',
        "''",
        '""',
        '""""a"""""',
        "'''''b'''",
    ]
)
SCALARS = STRINGS | st.sampled_from(["1", "-0.5e3", "true", "1979-05-27 07:32:00", "0xff"])
BLANKS = st.sampled_from(["", " ", "\n", " # c ]}\n", "\n\n\t"])


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    text = "["
    for value in draw(st.lists(inner, max_size=3)):
        text += draw(BLANKS) + value + draw(BLANKS) + ","
    return f"{text}{draw(BLANKS)}]"


@st.composite
def tables(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    keys = draw(st.lists(KEYS, unique=True, max_size=3))
    return "{" + ", ".join(f"{key} = {draw(inner)}" for key in keys) + " }"


VALUES = st.recursive(SCALARS, lambda inner: arrays(inner) | tables(inner), max_leaves=8)


@given(st.lists(st.tuples(KEYS, VALUES, BLANKS), max_size=5, unique_by=lambda row: row[0]))
def test_any_document_has_a_line_for_every_path_that_it_has(
    rows: list[tuple[str, str, str]],
) -> None:
    text = "".join(f"{blank}\n{key} = {value}\n" for key, value, blank in rows)
    lines = key_lines(text)
    assert set(lines) == paths(tomllib.loads(text))
    at = 1
    for key, value, blank in rows:
        at += blank.count("\n") + 1
        [name] = tomllib.loads(f"{key} = 1")
        assert lines[(name,)] == at
        at += value.count("\n") + 1
