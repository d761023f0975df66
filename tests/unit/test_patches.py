# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from sevkit.errors import BuildError, RecipeError
from sevkit.patches import Series, apply, read_patch, read_series
from sevkit.sandbox import Processes, SandboxRunner

HEADER = """\
Description: Change three lines
 A longer text about why.
Author: A. Person <person@example.org>
Forwarded: not-needed
Last-Update: 2024-05-31

---
"""
NUMBERS = [str(number) for number in range(1, 41)]


def text_of(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def replaced(*changes: tuple[int, str]) -> list[str]:
    lines = list(NUMBERS)
    for number, new in changes:
        lines[number - 1] = new
    return lines


def hunk(line: int, new: str) -> str:
    before = "".join(f" {number}\n" for number in range(line - 3, line))
    after = "".join(f" {number}\n" for number in range(line + 1, line + 4))
    return f"@@ -{line - 3},7 +{line - 3},7 @@\n{before}-{line}\n+{new}\n{after}"


def diff(name: str = "dir/numbers", *, old: str = "a/", new: str = "b/") -> str:
    hunks = hunk(5, "five") + hunk(20, "twenty") + hunk(35, "thirty-five")
    return f"--- {old}{name}\n+++ {new}{name}\n{hunks}"


CHANGED = replaced((5, "five"), (20, "twenty"), (35, "thirty-five"))


class Case:
    """A tree with one file of forty numbered lines, and a folder for a series."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tree = folder / "work" / "tree"
        self.series_dir = folder / "linux-test"
        self.file = self.tree / "dir" / "numbers"
        self.file.parent.mkdir(parents=True)
        self.file.write_text(text_of(NUMBERS))
        self.series_dir.mkdir()
        (folder / "out").mkdir()
        self.run = SandboxRunner(
            title="kernel",
            work=folder / "work",
            inputs={},
            log=folder / "log",
            jobs=1,
            confined=True,
            processes=Processes(),
            on_progress=lambda done, total, note: None,
        )

    def series(self, **patches: str) -> Series:
        """A series of `patches`, in order, read back."""
        for name, text in patches.items():
            (self.series_dir / f"{name}.patch").write_text(text)
        lines = [f"{name}.patch" for name in patches]
        (self.series_dir / "series").write_text(text_of(lines))
        return read_series(self.series_dir)

    def apply(self, series: Series) -> list[str]:
        return apply(
            series, self.tree, self.folder / "work" / "shadow", self.run, subject="linux 6.12.0"
        )


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_a_patch_that_fits_is_applied_and_described(case: Case) -> None:
    series = case.series(good=HEADER + diff())
    assert case.apply(series) == []
    assert case.file.read_text() == text_of(CHANGED)
    record = series.patches[0].record()
    assert record["files"] == ["dir/numbers"]
    assert record["description"] == "Change three lines"
    assert record["forwarded"] == "not-needed"
    assert len(str(record["sha256"])) == 64


def test_a_patch_with_fuzz_is_refused(case: Case) -> None:
    case.file.write_text(text_of(replaced((22, "changed"))))
    with pytest.raises(BuildError) as caught:
        case.apply(case.series(good=HEADER + diff()))
    assert caught.value.what == "patch good.patch does not apply to linux 6.12.0"
    assert caught.value.why == "dir/numbers: hunk 2 of 3 failed at line 17"
    assert "fuzz" in caught.value.hint


def test_a_hunk_that_moved_is_taken_and_reported(case: Case) -> None:
    case.file.write_text(text_of(["0", *NUMBERS]))
    moved = case.apply(case.series(good=HEADER + diff()))
    assert moved[1] == "good.patch: dir/numbers: hunk 2 moved by 1 lines"
    assert case.file.read_text() == text_of(["0", *CHANGED])


def test_a_patch_that_does_not_apply_names_the_hunk_and_leaves_the_tree_alone(case: Case) -> None:
    case.file.write_text(text_of(replaced((20, "other"))))
    before = case.file.read_bytes()
    with pytest.raises(BuildError) as caught:
        case.apply(case.series(good=HEADER + diff()))
    assert "hunk 2 of 3 failed" in caught.value.why
    assert "rewrite the hunk" in caught.value.hint
    assert case.file.read_bytes() == before


def test_a_later_patch_that_fails_undoes_the_earlier_ones(case: Case) -> None:
    second = HEADER + "--- a/dir/numbers\n+++ b/dir/numbers\n" + hunk(20, "again")
    with pytest.raises(BuildError, match=r"patch second\.patch does not apply"):
        case.apply(case.series(first=HEADER + diff(), second=second))
    assert case.file.read_text() == text_of(NUMBERS)


def test_a_patch_that_is_applied_already_is_said_to_be(case: Case) -> None:
    case.file.write_text(text_of(CHANGED))
    with pytest.raises(BuildError) as caught:
        case.apply(case.series(good=HEADER + diff()))
    assert "has this change already" in caught.value.hint


def test_files_are_made_and_removed_and_renamed(case: Case) -> None:
    text = HEADER + (
        "--- /dev/null\n+++ b/new/file\n@@ -0,0 +1 @@\n+hello\n"
        "diff --git a/dir/numbers b/dir/digits\nsimilarity index 100%\n"
        "rename from dir/numbers\nrename to dir/digits\n"
    )
    case.apply(case.series(make=text))
    assert (case.tree / "new/file").read_text() == "hello\n"
    assert (case.tree / "dir/digits").read_text() == text_of(NUMBERS)
    assert not case.file.exists()
    gone = HEADER + "--- a/new/file\n+++ /dev/null\n@@ -1 +0,0 @@\n-hello\n"
    case.apply(case.series(remove=gone))
    assert not (case.tree / "new/file").exists()


def test_what_only_git_s_header_lines_say_is_done_too(case: Case) -> None:
    (case.tree / "gone.py").touch()
    (case.tree / "tool").write_text("#!/bin/sh\n")
    text = HEADER + (
        "diff --git a/new/__init__.py b/new/__init__.py\nnew file mode 100644\nindex 0000..e69d\n"
        "diff --git a/gone.py b/gone.py\ndeleted file mode 100644\nindex e69d..0000\n"
        f"diff --git a/dir/numbers b/dir/numbers\nindex 0123..4567 100644\n{diff()}"
        "diff --git a/tool b/tool\nold mode 100644\nnew mode 100755\n"
        "diff --git a/dir/numbers b/copied\nsimilarity index 100%\n"
        "copy from dir/numbers\ncopy to copied\n-- \n2.39.5\n"
    )
    series = case.series(empty=text)
    case.apply(series)
    assert (case.tree / "new/__init__.py").read_bytes() == b""
    assert not (case.tree / "gone.py").exists()
    assert (case.tree / "tool").stat().st_mode & 0o111
    assert (case.tree / "copied").read_text() == text_of(NUMBERS), "a copy is of what was before"
    assert case.file.read_text() == text_of(CHANGED)
    assert series.patches[0].record()["files"] == [
        *("copied", "dir/numbers", "gone.py", "new/__init__.py", "tool")
    ]
    with pytest.raises(BuildError) as caught:
        case.apply(series)
    assert "new/__init__.py: the patch would create it" in caught.value.why


@pytest.mark.parametrize(
    "beside",
    [
        "*** /dev/null\n--- b/made\n***************\n*** 0 ****\n--- 1 ----\n+ y\n",
        "  --- /dev/null\n  +++ b/made\n  @@ -0,0 +1 @@\n  +y\n",
    ],
)
def test_a_patch_that_patch_reads_otherwise_is_refused(case: Case, beside: str) -> None:
    with pytest.raises(BuildError, match="does not apply"):
        case.apply(case.series(odd=HEADER + beside + diff()))
    assert case.file.read_text() == text_of(NUMBERS)
    assert not (case.tree / "made").exists()
    case.apply(case.series(even=HEADER + diff()))
    assert case.file.read_text() == text_of(CHANGED)


def test_names_that_a_shell_would_quote_are_patched(case: Case) -> None:
    (case.tree / "it's a name").write_text(text_of(NUMBERS))
    case.apply(case.series(odd=HEADER + diff("it's a name").replace("name\n", "name\t\n")))
    assert (case.tree / "it's a name").read_text() == text_of(CHANGED)


def test_a_file_that_is_not_there_is_named(case: Case) -> None:
    with pytest.raises(BuildError) as caught:
        case.apply(case.series(lost=HEADER + diff("dir/letters")))
    assert caught.value.why == "dir/letters: no such file"
    assert "-p1" in caught.value.hint


def test_a_patch_never_writes_through_a_symbolic_link(case: Case) -> None:
    outside = case.folder / "outside"
    outside.mkdir()
    (outside / "numbers").write_text(text_of(NUMBERS))
    (case.tree / "linked").symlink_to(outside)
    with pytest.raises(BuildError, match="symbolic link there"):
        case.apply(case.series(sly=HEADER + diff("linked/numbers")))
    assert (outside / "numbers").read_text() == text_of(NUMBERS)
    case.apply(case.series(good=HEADER + diff()))


def test_options_and_comments_and_folders_of_a_series_are_understood(case: Case) -> None:
    (case.series_dir / "sub").mkdir()
    (case.series_dir / "sub/zero.patch").write_text(HEADER + diff(old="", new=""))
    (case.series_dir / "series").write_text("# a comment\n\nsub/zero.patch -p0 # why\n")
    series = read_series(case.series_dir)
    assert [(patch.name, patch.strip) for patch in series.patches] == [("sub/zero.patch", 0)]
    case.apply(series)
    assert case.file.read_text() == text_of(CHANGED)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("../evil.patch", "series:2: ../evil.patch leaves the folder of the series"),
        ("/etc/passwd", "series:2: /etc/passwd leaves the folder"),
        ("link.patch", "series:2: link.patch is a link to outside"),
        ("missing.patch", "series:2: missing.patch does not exist"),
        ("good.patch", "series:2: good.patch is listed twice"),
        ("good.patch -R", "series:2: option -R is not supported"),
    ],
)
def test_a_bad_line_of_a_series_is_named(case: Case, line: str, problem: str) -> None:
    (case.folder / "evil.patch").write_text(HEADER + diff())
    (case.series_dir / "link.patch").symlink_to(case.folder / "evil.patch")
    case.series(good=HEADER + diff())
    (case.series_dir / "series").write_text(f"good.patch\n{line}\n")
    with pytest.raises(RecipeError) as caught:
        read_series(case.series_dir)
    assert problem in str(caught.value)


def test_a_series_without_patches_or_without_a_series_file_is_refused(case: Case) -> None:
    with pytest.raises(RecipeError, match="series: No such file"):
        read_series(case.series_dir)
    (case.series_dir / "series").write_text("# nothing yet\n")
    with pytest.raises(RecipeError, match="lists no patch"):
        read_series(case.series_dir)


def test_every_missing_header_field_of_every_patch_is_reported_at_once(case: Case) -> None:
    with pytest.raises(RecipeError) as caught:
        case.series(
            bare=diff(),
            dated=HEADER.replace("2024-05-31", "yesterday") + diff(),
        )
    text = str(caught.value)
    for lacking in ("Description or Subject", "Author or From", "Forwarded or Origin"):
        assert f"bare.patch:1: DEP-3 header lacks {lacking}" in text
    assert "bare.patch:1: DEP-3 header lacks Last-Update" in text
    assert "dated.patch:1: Last-Update is 'yesterday'" in text


def test_the_header_of_a_git_patch_is_read(case: Case) -> None:
    text = (
        "From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001\n"
        "From: A. Person <person@example.org>\n"
        "Subject: [PATCH] Count differently\n\nFree text: not a header field.\nMore text.\n\n"
        "Origin: upstream, https://example.org/1\nLast-Update: 2024-05-31\n---\n"
    )
    [patch] = case.series(git=text + diff()).patches
    assert patch.description == "Count differently"
    assert patch.forwarded == "upstream, https://example.org/1"
    assert "free" not in " ".join(patch.fields)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (diff("../../escape"), "leaves the tree"),
        (diff("/etc/passwd", old="", new=""), "leaves the tree"),
        (diff("dir/numbers", old="", new="").replace("dir/", ""), "has no name left after -p1"),
        (diff().replace("+32,", "+32;"), "malformed '@@' line"),
        (diff().replace("@@ -2,7 +2,7", "@@ -2;7 +2;7"), "no hunk follows"),
        (diff().replace(" 37\n", ""), "promises another size"),
        (diff().replace("@@ -2,7 +2,7", "@@ -2,6 +2,6"), "promises another size"),
        (diff() + "GIT binary patch\nliteral 0\n", "binary patch"),
        ("new file mode 120000\n" + diff(), "symbolic link"),
        ("nothing here\n", "changes no file"),
        ("@@ -1 +1 @@\n-1\n+one\n", "without '---' and '\\+\\+\\+' lines"),
        ("\x00\x01\n" + diff(), "NUL byte"),
        (diff() + "diff --git a/a b b/a b\nnew file mode 100644\n", "a space in it"),
        (diff() + "diff --git a/../b b/../b\nnew file mode 100644\n", "leaves the tree"),
    ],
)
def test_a_malformed_patch_is_refused_with_its_line(case: Case, body: str, problem: str) -> None:
    path = case.folder / "bad.patch"
    path.write_text(HEADER + diff())
    read_patch(path, "bad.patch")
    path.write_text(HEADER + body)
    with pytest.raises(RecipeError, match=problem) as caught:
        read_patch(path, "bad.patch")
    assert "bad.patch:" in str(caught.value)


def test_a_patch_that_is_not_text_is_refused(case: Case) -> None:
    path = case.folder / "bad.patch"
    path.write_bytes(HEADER.encode() + b"\xff\xfe\n")
    with pytest.raises(RecipeError, match=r"bad\.patch:8: not a text patch"):
        read_patch(path, "bad.patch")
