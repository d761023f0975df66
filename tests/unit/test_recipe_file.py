# SPDX-License-Identifier: Apache-2.0
"""Finding, extending and rendering recipes; where their problems are said to be."""

import contextlib
import json
import os
import pickle
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from recipe_samples import BASE, CHILD, Project

from sevkit.recipe.file import load
from sevkit.recipe.library import Library
from sevkit.recipe.model import DebSource, FileSource, UrlSource

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


# --- the shipped recipes -------------------------------------------------------------------------


def shipped(name: str, **overrides: str) -> object:
    recipe = load(name, overrides, Library.of(REPOSITORY))
    assert recipe.name == name
    return recipe.model_dump(mode="json")


def test_every_shipped_recipe_loads_for_both_kernels() -> None:
    names = Library.of(REPOSITORY).recipes()
    assert {"sev-guest", "sev-guest-builtin", "sev-guest-debug"} <= set(names)
    for name in names:
        assert shipped(name) != shipped(name, kernel_series="6.1")


def test_the_older_kernel_is_a_variable_away() -> None:
    recipe = load("sev-guest", {"kernel_series": "6.1"}, Library.of(REPOSITORY))
    linux = recipe.sources["linux"]
    assert isinstance(linux, DebSource)
    assert linux.deb == "linux-source-6.1"
    assert linux.member == "usr/src/linux-source-6.1.tar.xz"
    assert recipe.kernel.patches == "linux-6.1"
    assert recipe.vars == {"kernel_series": "6.1"}


def test_variants_differ_from_the_default_only_in_what_they_are_for() -> None:
    library = Library.of(REPOSITORY)
    default, builtin, debug = (
        load(name, {}, library) for name in ("sev-guest", "sev-guest-builtin", "sev-guest-debug")
    )
    assert (default.initramfs.placement, builtin.initramfs.placement) == ("separate", "builtin")
    assert builtin.kernel == default.kernel
    assert (default.debug, builtin.debug, debug.debug) == (False, False, True)
    assert "quiet" in default.kernel.cmdline
    assert {"quiet", "loglevel=7"} & set(debug.kernel.cmdline) == {"loglevel=7"}
    assert set(default.kernel.cmdline) - {"quiet"} < set(debug.kernel.cmdline)


# --- extending -----------------------------------------------------------------------------------


def test_tables_merge_and_lists_are_replaced(project: Project) -> None:
    recipe = project.child('[kernel]\nconfigs = ["three"]\n')
    assert recipe.kernel.configs == ("three",)
    assert recipe.kernel.source == "linux"
    assert recipe.version == "1.0.0"


def test_dots_in_a_list_stand_for_the_inherited_elements(project: Project) -> None:
    assert project.child('kernel.configs = ["three", "..."]').kernel.configs == (
        "three",
        "one",
        "two",
    )


def test_dots_are_refused_where_nothing_is_inherited(project: Project) -> None:
    said = project.refusal('[initramfs]\ndebs = ["...", "crun"]\n')
    assert said == 'child.toml:5: initramfs.debs[0]: "..." has nothing to stand for'
    said = project.refusal('[agent]\npath = "."\nbinary = "b"\ndebs = ["..."]\n')
    assert "this table is replaced whole" in said


def test_agent_firmware_and_each_source_are_replaced_whole(project: Project) -> None:
    project.write("agent/Makefile", "")
    recipe = project.child(
        'agent = { path = "agent", binary = "init" }\nsources.linux = { deb = "other" }\n'
    )
    assert (recipe.agent.source, recipe.agent.member) == (None, None)
    assert recipe.sources["linux"] == DebSource(deb="other")
    assert recipe.sources["ovmf"] == DebSource(deb="ovmf")


def test_a_name_is_not_inherited(project: Project) -> None:
    project.recipe("nameless", 'schema = 1\nextends = "base"\n')
    assert project.refused("nameless") == "nameless.toml:1: name: is missing"


def test_an_inherited_patch_series_can_be_dropped(project: Project) -> None:
    project.recipe("patched", CHILD + 'kernel.patches = "linux-6.12"\n')
    assert project.load("patched").kernel.patches == "linux-6.12"
    text = CHILD.replace("base", "patched") + 'kernel.patches = ""\n'
    project.recipe("bare", text)
    assert project.load("bare").kernel.patches is None


def test_a_chain_of_three_takes_each_value_from_the_nearest(project: Project) -> None:
    project.recipe("middle", CHILD + 'version = "2"\nsummary = "middle"\n')
    project.recipe("leaf", 'schema = 1\nextends = "middle"\nname = "leaf"\nversion = "3"\n')
    recipe = project.load("leaf")
    assert (recipe.name, recipe.version, recipe.summary) == ("leaf", "3", "middle")


def test_recipes_that_extend_each_other_are_refused_with_the_loop(project: Project) -> None:
    project.recipe("a", 'schema = 1\nname = "a"\nextends = "b"\n')
    project.recipe("b", 'schema = 1\nname = "b"\nextends = "a"\n')
    said = project.refused("a")
    assert said == (
        "b.toml:3: extends: recipes extend each other in a loop: a.toml → b.toml → a.toml"
    )


def test_a_chain_that_never_ends_is_refused(project: Project) -> None:
    for number in range(20):
        text = f'schema = 1\nname = "r{number}"\nextends = "r{number + 1}"\n'
        project.recipe(f"r{number}", text)
    assert "more than 16 recipes extend each other" in project.refused("r0")


def test_extends_may_be_a_path_beside_the_file(project: Project) -> None:
    project.write("elsewhere/mine.toml", CHILD.replace('"base"', '"../recipes/base.toml"'))
    path = str(project.folder / "elsewhere" / "mine.toml")
    assert project.load(path).version == "1.0.0"


@pytest.mark.parametrize(
    ("extends", "why"),
    [
        ('"bas"', "there is no recipe 'bas': did you mean 'base'?"),
        ('"./none.toml"', "there is no none.toml"),
        ('""', "there is no recipe ''"),
        ('"a\\u0000/b"', "there is no a\\x00/b"),
        ("3", "must be the name of a recipe, in quotes"),
    ],
)
def test_a_parent_that_is_not_there_is_named_with_the_line(
    extends: str, why: str, project: Project
) -> None:
    project.recipe("child", f'schema = 1\nname = "child"\nextends = {extends}\n')
    assert project.refused("child").startswith(f"child.toml:3: extends: {why}")


def test_a_projects_recipe_may_extend_the_built_in_one_of_its_name(project: Project) -> None:
    built_in = BASE.replace('"1.0.0"', '"9"')
    project.write("built-in/recipes/base.toml", built_in)
    project.recipe("base", 'schema = 1\nextends = "base"\nname = "base"\nsummary = "ours"\n')
    recipe = project.load("base")
    assert (recipe.version, recipe.summary) == ("9", "ours")


# --- variables -----------------------------------------------------------------------------------


def test_variables_use_each_other_and_the_command_line_wins(project: Project) -> None:
    text = '[vars]\nfull = "{{ series }}.9"\nfile = "linux-{{ full }}"\n'
    project.recipe("child", CHILD + 'version = "{{ file }}"\n' + text)
    assert project.load("child").version == "linux-6.12.9"
    assert project.load("child", {"series": "6.1"}).version == "linux-6.1.9"
    assert project.load("child", {"full": "x"}).vars == {
        "series": "6.12",
        "full": "x",
        "file": "linux-x",
    }


def test_a_value_from_the_command_line_is_no_template(project: Project) -> None:
    project.recipe("child", CHILD + 'summary = "{{ note }}"\nvars.note = "{{ series }}"\n')
    assert project.load("child").summary == "6.12"
    assert project.load("child", {"note": "{{ series }}"}).summary == "{{ series }}"


def test_an_unknown_variable_on_the_command_line_names_the_nearest(project: Project) -> None:
    assert project.refused("base", {"serie": "6.1"}) == (
        "base.toml has no variable 'serie': did you mean 'series'?"
    )
    project.recipe(
        "bare", BASE.replace('[vars]\nseries = "6.12"\n', "").replace("{{ series }}", "")
    )
    assert project.refused("bare", {"x": "1"}).endswith("has no variable 'x': it has none")


def test_a_value_that_can_not_be_printed_is_refused(project: Project) -> None:
    assert "must be printable" in project.refused("base", {"series": "6.1\n"})
    assert "must be printable" in project.refused("base", {"series": "\udcff"})


def test_an_undefined_variable_is_told_once_where_it_is_used(project: Project) -> None:
    said = project.refusal('summary = "{{ serie }}"\n')
    assert said == ("child.toml:4: summary: there is no variable 'serie': did you mean 'series'?")


def test_variables_in_a_loop_are_told_once_with_the_loop(project: Project) -> None:
    said = project.refusal('[vars]\na = "{{ b }}"\nb = "{{ c }}"\nc = "{{ a }}"\nd = "{{ a }}"\n')
    assert said == "child.toml:5: vars.a: variables use each other in a loop: a → b → c → a"


def test_what_follows_from_a_broken_variable_is_not_told(project: Project) -> None:
    text = 'version = "{{ x }}"\n[vars]\nx = 6.12\ny = "{{ x }}"\n[kernel]\nsource = "{{ y }}"\n'
    assert project.refusal(text) == "child.toml:6: vars.x: must be text in quotes, not 6.12"


# --- files ---------------------------------------------------------------------------------------


def test_files_are_found_beside_the_recipe_that_wrote_them(project: Project) -> None:
    for folder in ("recipes", "elsewhere"):
        for name in ("motd", "fw.fd"):
            project.write(f"{folder}/{name}", folder)
    files = '[initramfs.files]\n"/etc/motd" = "motd"\n'
    project.recipe("parent", CHILD + 'sources.fw = { file = "fw.fd" }\n' + files)
    child = 'schema = 1\nextends = "../recipes/parent.toml"\nname = "x"\n'
    project.write("elsewhere/x.toml", child + files.replace('/motd"', '/issue"'))
    recipe = project.load(str(project.folder / "elsewhere" / "x.toml"))
    assert recipe.initramfs.files == {
        "/etc/motd": project.folder / "recipes" / "motd",
        "/etc/issue": project.folder / "elsewhere" / "motd",
    }
    assert recipe.sources["fw"] == FileSource(file=project.folder / "recipes" / "fw.fd")


def test_a_path_is_told_without_dots_unless_a_link_makes_it_another_place(
    project: Project,
) -> None:
    project.write("files/fw.fd", "")
    project.write("agent/Makefile", "")
    project.write("deep/down/x", "")
    (project.folder / "recipes" / "link").symlink_to("../deep/down")
    project.write("deep/fw.fd", "")
    recipe = project.child(
        'sources.a = { file = "../files/fw.fd" }\n'
        'sources.b = { file = "link/../fw.fd" }\n'
        'agent = { path = "../agent", binary = "init" }\n'
    )
    assert recipe.sources["a"] == FileSource(file=project.folder / "files" / "fw.fd")
    through = project.folder / "recipes" / "link" / ".." / "fw.fd"
    assert recipe.sources["b"] == FileSource(file=through)
    assert recipe.agent.path == project.folder / "agent"


def test_an_agent_is_found_in_the_project_before_the_built_in_one(project: Project) -> None:
    project.write("built-in/agent/Makefile", "")
    text = 'agent = { path = "agent", binary = "init" }\n'
    assert project.child(text).agent.path == project.built_in / "agent"
    project.write("agent/Makefile", "")
    assert project.child(text).agent.path == project.folder / "agent"


@pytest.mark.parametrize("name", ["none", "x" * 300, "a\\u0000b", "recipes/base.toml/x"])
def test_a_file_that_is_not_there_is_named_with_the_line(name: str, project: Project) -> None:
    said = project.refusal(f'[initramfs.files]\n"/etc/x" = "{name}"\n')
    assert said.startswith('child.toml:5: initramfs.files."/etc/x": there is no ')
    said = project.refusal(f'agent = {{ path = "{name}", binary = "b" }}\n')
    assert said.startswith("child.toml:4: agent.path: there is no folder ")


def test_an_empty_path_is_refused(project: Project) -> None:
    said = project.refusal('sources.x = { file = "" }\n')
    assert said == "child.toml:4: sources.x.file: must not be empty"


# --- files that are no recipes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"a = 1\nb = \xff\n", ":2: not TOML: this is not UTF-8"),
        (b"a = 1\nb = \n", ":2: not TOML: invalid value"),
        (b'a = 1\nb = "', ":2: not TOML: unterminated string"),
        (b"a = 1\na = 2\n", ":2: not TOML: cannot overwrite a value"),
        (b"a = " + b"9" * 5000, "not TOML"),
        (b"a = 0x" + b"f" * 5000, ":1: a: a number of more than 64 bits"),
        (b"a = 9223372036854775808", ":1: a: a number of more than 64 bits"),
        (b"[a]\nb = [-9223372036854775809]", ":2: a.b[0]: a number of more than 64 bits"),
        (b"#" * (257 << 10), "is larger than 256 KiB"),
        (b"a = " + b"[" * 9000, "nested more than 8 deep"),
        (b"a = " + b"{a=" * 9000, "nested more than 8 deep"),
        (b"a" + b".a" * 100 + b" = 1", "nested more than 8 deep"),
        (b"x = 1\na" + b".a" * 9000 + b" = 1", ":2: more than 200 dots in one line"),
        (b"\x00\x01\x02", ":1: not TOML: invalid statement"),
    ],
)
def test_a_file_that_is_no_recipe_gets_one_clear_error(
    content: bytes, why: str, project: Project
) -> None:
    project.recipe("bad", content)
    said = project.refused("bad")
    assert said.startswith("bad.toml")
    assert why in said


def test_a_very_large_file_is_refused_without_being_read(project: Project) -> None:
    path = project.recipe("large", b"")
    os.truncate(path, 100 << 20)
    started = time.process_time()
    assert "is larger than 256 KiB" in project.refused("large")
    assert time.process_time() - started < 0.1


def test_folders_devices_pipes_and_missing_files_are_refused(project: Project) -> None:
    (project.folder / "d.toml").mkdir()
    os.mkfifo(project.folder / "p.toml")
    for name, why in [
        ("d.toml", "is a folder: a recipe is a TOML file"),
        ("p.toml", "is no regular file: a recipe is a TOML file"),
        ("n.toml", "can't be read: No such file or directory"),
        (f"{'n' * 300}.toml", "can't be read: File name too long"),
    ]:
        assert project.refused(str(project.folder / name)) == f"{name} {why}"
    assert project.refused("/dev/zero") == "/dev/zero is no regular file: a recipe is a TOML file"
    assert "is no path" in project.refused("a\0.toml")


def test_a_file_that_may_not_be_read_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder, nobody_if_root(Path(folder)):
        project = Project(Path(folder))
        assert project.load("base")
        project.recipe("base", BASE).chmod(0)
        assert project.refused("base") == "base.toml can't be read: Permission denied"


@contextlib.contextmanager
def nobody_if_root(folder: Path) -> Iterator[None]:
    """Root may read every file; so be somebody else, who owns `folder`, for a while."""
    user = os.geteuid()
    if user == 0:
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("said", ["", "schema = 2\n", "schema = true\n", "schema = 1.0\n"])
def test_every_file_says_which_schema_it_is_written_in(said: str, project: Project) -> None:
    project.recipe("base", BASE.replace("schema = 1\n", said))
    project.recipe("child", CHILD)
    assert project.refused("child").startswith("base.toml:1: schema: ")


# --- where problems are --------------------------------------------------------------------------


def test_all_problems_are_told_together_each_at_the_line_that_wrote_it(project: Project) -> None:
    project.recipe("base", BASE.replace('"console=ttyS0"', '"console=ttyS0", "root=/dev/sda"'))
    said = project.refusal(
        "debg = true\n"
        "[kernel]\n"
        'configs = ["...",\n  "tow"]\n'
        'patches = "linux-6.21"\n'
        "[launch]\n"
        'modes = ["sev",\n  "snp"]\n'
        "vcpus = [513]\n"
        '[sources."Bad Name"]\n'
        'deb = "x"\n'
        "[firmware]\n"
        'source = "ovnf"\n'
    )
    assert [line.partition(": ")[::2] for line in said.splitlines()] == [
        ("child.toml:4", "debg: there is no such key: did you mean 'debug'?"),
        (
            "child.toml:7",
            "kernel.configs[2]: there is no kernel config fragment 'tow': did you mean 'two'?",
        ),
        (
            "child.toml:8",
            "kernel.patches: there is no patch series 'linux-6.21': did you mean 'linux-6.12'?",
        ),
        ("child.toml:11", "launch.modes[1]: \"snp\" is not possible: did you mean 'sev-snp'?"),
        ("child.toml:12", "launch.vcpus[0]: 513 must be less than or equal to 512"),
        (
            "child.toml:13",
            'sources."Bad Name": "Bad Name" is not a name: lower-case letters, digits, '
            "'.', '_', '-', at most 64",
        ),
        ("child.toml:14", 'sources."Bad Name".deb: "x" is not the name of a Debian package'),
        ("child.toml:16", "firmware.source: no source is called 'ovnf': did you mean 'ovmf'?"),
        (
            "base.toml:17",
            'kernel.cmdline[1]: "root=/dev/sda" is not for this kind of guest: the initramfs is '
            "the root, its /init runs",
        ),
    ]


def test_an_inherited_element_is_told_at_the_line_of_the_parent(project: Project) -> None:
    project.recipe("base", BASE.replace('["one", "two"]', '["one", "tow"]'))
    said = project.refusal('kernel.configs = ["three", "..."]\n')
    assert said.startswith("base.toml:16: kernel.configs[2]: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"a\\nb\\u001b[2J" = 1', '"a\\nb\\x1b[2J": there is no such key'),
        ('kernel.source = "a\\nb"', "kernel.source: no source is called 'a\\nb'"),
        ('kernel.configs = ["a\\u001b[2J"]', "there is no kernel config fragment 'a\\x1b[2J'"),
        ('sources.x = { file = "a\\nb\\u202e" }', "there is no a\\nb\\u202e"),
        ('version = "é\\u0007"', '"é\\u0007" is not a version'),
    ],
)
def test_what_can_not_be_printed_is_escaped_so_that_a_problem_is_one_line(
    text: str, said: str, project: Project
) -> None:
    told = project.refusal(text + "\n")
    assert told.startswith("child.toml:4: ")
    assert said in told
    assert told.isprintable()


def test_a_name_that_can_not_be_printed_is_escaped_in_extends_and_on_the_command_line(
    project: Project,
) -> None:
    project.recipe("child", CHILD.replace('"base"', '"a\\n\\u001bb"'))
    assert "there is no recipe 'a\\n\\x1bb'" in project.refused("child")
    assert "there is no recipe 'a\\nb'" in project.refused("a\nb")
    assert "has no variable 'a\\nb'" in project.refused("base", {"a\nb": "1"})


def test_very_many_wrong_names_among_very_many_are_told_soon(project: Project) -> None:
    debs = ",".join(f'"{{{{ v{n}x }}}}"' for n in range(300))
    names = "".join(f'v{n} = ""\n' for n in range(15000))
    started = time.process_time()
    said = project.refusal(f"initramfs.debs = [{debs}]\n[vars]\n{names}")
    assert time.process_time() - started < 5
    assert "there is no variable 'v0x': one of series, v0, v1, " in said
    assert len(said) < 100_000


def test_very_many_problems_are_cut_and_counted(project: Project) -> None:
    said = project.refusal("".join(f"k{n} = 1\n" for n in range(300)))
    assert said.count("\n") == 99
    assert said.endswith("…")


# --- the result ----------------------------------------------------------------------------------


def test_a_recipe_can_be_hashed_pickled_and_not_changed(project: Project) -> None:
    recipe, again = project.load("base"), project.load("base")
    assert hash(recipe) == hash(again)
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    with pytest.raises(TypeError):
        recipe.vars["series"] = "1"  # type: ignore[index]
    with pytest.raises(ValueError, match="frozen"):
        recipe.kernel.source = "x"


def test_the_order_of_keys_in_the_file_does_not_show_in_the_result(project: Project) -> None:
    project.recipe("a", CHILD + 'sources = { b = { deb = "bb" }, a = { deb = "aa" } }\n')
    project.recipe("b", CHILD + 'sources = { a = { deb = "aa" }, b = { deb = "bb" } }\n')
    dumps = [json.dumps(project.load(name).model_dump(mode="json")) for name in "ab"]
    assert dumps[0] == dumps[1]
    assert '"a": {"deb": "aa"' in dumps[0]


def test_one_address_is_a_list_of_one(project: Project) -> None:
    digest = "0" * 64
    one = project.child(f'sources.x = {{ url = "https://a/b", sha256 = "{digest}" }}\n')
    two = project.child(f'sources.x = {{ url = ["https://a/b"], sha256 = "{digest}" }}\n')
    assert one.sources["x"] == two.sources["x"] == UrlSource(url=("https://a/b",), sha256=digest)
