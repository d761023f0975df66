# SPDX-License-Identifier: Apache-2.0
"""The command line of a launch: what no kernel takes, and what a kernel reads in one it takes."""

from pathlib import Path

import image_samples
import pytest

from sevkit.errors import ImageError, RecipeError
from sevkit.image.cmdline import full_cmdline, parameters
from sevkit.image.manifest import Manifest, load


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return load(image_samples.image(tmp_path_factory.mktemp("image")))


def with_cmdline(manifest: Manifest, cmdline: str) -> Manifest:
    return manifest.model_copy(update={"cmdline": cmdline})


def test_what_is_appended_comes_after_a_blank(manifest: Manifest) -> None:
    own = "console=ttyS0 swiotlb=force"
    assert full_cmdline(manifest, Path("i")) == own
    assert full_cmdline(manifest, Path("i"), ["a", "", 'b="c d"']) == f'{own} a b="c d"'
    assert full_cmdline(with_cmdline(manifest, ""), Path("i"), ["a"]) == "a"


@pytest.mark.parametrize(
    ("cmdline", "why"),
    [
        ("a\0b", "NUL"),
        ("a\x1b[2Jb", "printable ASCII"),
        ("a\nb", "printable ASCII"),
        ("größe", "printable ASCII"),
        ('a="b', "without its partner"),
        ("x" * 2048, "2048 bytes, the kernel takes 2047"),
    ],
)
def test_a_line_that_no_kernel_takes_is_refused_whoever_wrote_it(
    manifest: Manifest, cmdline: str, why: str
) -> None:
    with pytest.raises(ImageError, match=rf"^i/manifest.json: cmdline .*{why}"):
        full_cmdline(with_cmdline(manifest, cmdline), Path("i"))
    with pytest.raises(RecipeError, match=f"that is launched .*{why}"):
        full_cmdline(with_cmdline(manifest, ""), Path("i"), [cmdline])


def test_what_is_appended_may_fill_the_kernel_s_limit_and_not_a_byte_more(
    manifest: Manifest,
) -> None:
    long = with_cmdline(manifest, "x" * 2020)
    assert len(full_cmdline(long, Path("i"), ["y" * 26])) == 2047
    with pytest.raises(RecipeError, match="is 2048 bytes"):
        full_cmdline(long, Path("i"), ["y" * 27])


def test_quotes_hold_blanks_together_and_come_off() -> None:
    line = 'quiet "swiotlb=65536" init="/bin/a b" "x y"'
    assert list(parameters(line)) == [
        ("quiet", None),
        ("swiotlb", "65536"),
        ("init", "/bin/a b"),
        ("x y", None),
    ]


def test_the_kernel_reads_nothing_after_two_dashes() -> None:
    assert list(parameters("a=1 -- a=2")) == [("a", "1")]
    assert list(parameters('a=1 "--" a=2')) == [("a", "1")]
    assert list(parameters("--a a --=b c")) == [
        ("--a", None),
        ("a", None),
        ("--", "b"),
        ("c", None),
    ]


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("", []),
        ("  a\tb  c=d=e ", [("a", None), ("b", None), ("c", "d=e")]),
        ('"u="v"" w=""', [("u", 'v"'), ("w", "")]),
        ('"p"=q r="s"t', [('p"', "q"), ("r", 's"t')]),
        ("=z =y=z = ==", [("=z", None), ("=y", "z"), ("=", None), ("=", "")]),
        ('"" "a" "=" "="=', [("", None), ("a", None), ("=", None), ('="', "")]),
        ('a"b c"d=e"f g" "h"i j', [('a"b c"d', 'e"f g"'), ('h"i', None), ("j", None)]),
    ],
)
def test_odd_quotes_and_signs_are_taken_as_next_arg_takes_them(
    cmdline: str, expected: list[tuple[str, str | None]]
) -> None:
    """Expected is what the kernel's own function, compiled alone, says of the line."""
    assert list(parameters(cmdline)) == expected
