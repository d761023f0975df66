# SPDX-License-Identifier: Apache-2.0
"""Lock files: written and read back, and whatever is no lock refused."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkit.canonical import Json
from sevkit.errors import RecipeError
from sevkit.project.lock import Choice, Lock, changes_of, config_key, read_lock
from sevkit.project.project import Project
from sevkit.recipe.model import DebSource, GitSource, UrlSource
from sevkit.sources import DebGroup, Pin, Request
from sevkit.sources.pins import git_pin
from sevkit.stage import Stage

LINUX = DebSource(deb="linux-source-6.12", member="linux.tar.xz")
OTHER = DebSource(deb="linux-source-6.1", member="linux.tar.xz")
GROUP = DebGroup(("crun",), None)
URL = UrlSource(url=("https://user:secret@example.org/a.tar",), sha256="c" * 64)
GIT = GitSource(git="https://example.org/tree.git", commit="e" * 40)
MEND = "sevkit lock r packing=zstd"
PACKED = {"packing": "zstd"}
CONFIG = b"CONFIG_64BIT=y\n"


def pin(name: str, digit: str = "a", size: int | None = 7) -> Pin:
    origin = {"kind": "deb", "package": name, "version": "1:2~3+4", "path": f"pool/{name}"}
    return Pin(f"blob:{digit * 64}", f"{name}_1%3a2~3+4_amd64.deb", size, origin)


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    url = Pin("blob:" + "c" * 64, "a.tar", None, {"kind": "url", "url": URL.url[0]})
    return (
        Lock(tmp_path / "recipes" / "r.lock", "r")
        .with_pins("tree", GIT, [git_pin(GIT)])
        .with_pins("linux", LINUX, [pin("linux")])
        .with_pins("debs:initramfs", GROUP, [pin("libc6", "b"), pin("crun")])
        .with_pins("archive", URL, [url])
        .with_config("d" * 64, "6.12", CONFIG, Choice("host", PACKED))
    )


def written(lock: Lock) -> Path:
    lock.write({"r-6.12.config": CONFIG})
    return lock.path


def test_a_lock_is_read_as_it_was_written(lock: Lock) -> None:
    read = read_lock(written(lock), "r", MEND)
    assert read is not None
    assert read.text() == lock.text()
    assert read.pins(LINUX) == (pin("linux"),)
    assert {one.name for one in read.pins(GROUP) or ()} == {pin("crun").name, pin("libc6").name}
    assert read.pins(OTHER) is None
    path = read.config("d" * 64)
    assert path is not None
    assert path.read_bytes() == CONFIG
    assert read.config("e" * 64) is None
    assert "secret" not in lock.text()
    assert sorted(one.name for one in lock.path.parent.iterdir()) == ["r-6.12.config", "r.lock"]


def test_what_is_locked_is_still_fetched_with_the_recipes_credentials(
    lock: Lock, tmp_path: Path
) -> None:
    project = Project(tmp_path, tmp_path / "out", tmp_path / "store", lambda _: None)
    [found] = project.stated_pins(lock, "archive", URL) or ()
    assert found.origin["url"] == URL.url[0]
    project.locked = True
    assert project.stated_pins(lock, "archive", URL) == [found]
    other = UrlSource(url=URL.url, sha256="d" * 64)
    with pytest.raises(RecipeError, match="archive is not locked as"):
        project.stated_pins(lock, "archive", other)


def test_the_order_of_locking_changes_nothing(lock: Lock, tmp_path: Path) -> None:
    again = Lock(lock.path, "r").with_config("d" * 64, "6.12", CONFIG, Choice("host", PACKED))
    for row in reversed(lock.requests):
        request = {"linux": LINUX, "debs:initramfs": GROUP, "archive": URL, "tree": GIT}[row.source]
        again = again.with_pins(row.source, request, row.pins[::-1])
    assert again.text() == lock.text()


def test_where_there_is_no_lock_there_is_none(tmp_path: Path) -> None:
    assert read_lock(tmp_path / "r.lock", "r", MEND) is None


def test_a_refusal_says_what_was_locked_and_what_is_asked(lock: Lock) -> None:
    refused = replace(lock, mend=MEND).refusal("linux", OTHER)
    assert "linux-source-6.12" in refused.why
    assert "linux-source-6.1\n" in refused.why + "\n"
    assert "locked:" not in lock.refusal("new", OTHER).why
    assert refused.hint == MEND


def test_changes_are_told_line_by_line(lock: Lock) -> None:
    assert changes_of(lock, lock) == []
    newer = lock.with_pins("linux", LINUX, [pin("linux-new")])
    newer = newer.with_pins("debs:initramfs", GROUP, [pin("libc6", "f"), pin("crun")])
    newer = newer.with_config("e" * 64, "6.12", b"other", Choice("host", PACKED))
    assert changes_of(lock, newer) == [
        "linux: linux_1%3a2~3+4_amd64.deb is out",
        "linux: linux-new_1%3a2~3+4_amd64.deb is in",
        "debs:initramfs: libc6_1%3a2~3+4_amd64.deb has other bytes",
        "kernel: r-6.12.config is another",
    ]
    assert list(newer.configs) == ["e" * 64]


def test_a_configuration_that_was_edited_or_lost_is_refused(lock: Lock) -> None:
    config = written(lock).with_name("r-6.12.config")
    config.write_bytes(CONFIG + b"CONFIG_SWAP=y\n")
    with pytest.raises(RecipeError, match="is not the configuration that"):
        lock.config("d" * 64)
    config.unlink()
    with pytest.raises(RecipeError, match="No such file"):
        lock.config("d" * 64)


def files_of(lock: Lock) -> dict[str, str]:
    """The first digit of each key, and the file that its configuration is in."""
    return {key[0]: row.file for key, row in lock.configs.items()}


def test_each_choice_of_variables_and_toolchain_has_a_configuration_of_its_own(lock: Lock) -> None:
    packed = {"packing": "gzip"}
    both = lock.with_config("e" * 64, "6.12", b"gzip", Choice("host", packed))
    three = both.with_config("f" * 64, "6.12", b"trixie", Choice("debian:trixie", PACKED))
    assert files_of(three)["d"] == "r-6.12.config"
    assert len(set(files_of(three).values())) == 3
    assert all(name.startswith("r-6.12") for name in files_of(three).values())

    moved_on = three.with_config("1" * 64, "6.12", b"gzip, later", Choice("host", packed))
    assert files_of(moved_on) == {
        **{key: files_of(three)[key] for key in "df"},
        "1": files_of(three)["e"],
    }
    more = {**packed, "new": "x"}
    assert files_of(moved_on.with_config("2" * 64, "6.12", b"later", Choice("host", more))) == {
        **{key: files_of(three)[key] for key in "df"},
        "2": files_of(three)["e"],
    }


def test_one_configuration_stands_for_several_choices_until_each_has_another(lock: Lock) -> None:
    other = Choice("host", {"packing": "gzip"})
    both = lock.with_config("d" * 64, "6.12", CONFIG, other)
    assert both.text() == lock.with_config("d" * 64, "6.12", CONFIG, other).text()
    assert {len(row.choices) for row in both.configs.values()} == {2}
    read = read_lock(written(both), "r", MEND)
    assert read is not None
    assert sorted(one.variables["packing"] for one in read.choices()) == ["gzip", "zstd"]
    moved = both.with_config("e" * 64, "6.12", b"gzip", other)
    assert [len(row.choices) for row in moved.configs.values()] == [1, 1]
    assert list(moved.with_config("e" * 64, "6.12", b"gzip", Choice("host", PACKED)).configs) == [
        "e" * 64
    ]


def test_equal_configurations_share_a_file_and_the_plain_name_is_taken_up_again(
    lock: Lock,
) -> None:
    packed = {"packing": "gzip"}
    both = lock.with_config("e" * 64, "6.12", CONFIG, Choice("host", packed))
    assert files_of(both) == {"d": "r-6.12.config", "e": "r-6.12.config"}
    first = both.with_config("1" * 64, "6.12", b"later", Choice("host", PACKED))
    assert files_of(first)["e"] == "r-6.12.config" != files_of(first)["1"]
    again = first.with_config("2" * 64, "6.12", b"later", Choice("host", packed))
    assert files_of(again) == {"1": "r-6.12.config", "2": "r-6.12.config"}
    other = again.with_config("3" * 64, "6.1", b"other", Choice("host", {"packing": "xz"}))
    assert files_of(other)["3"] == "r-6.1.config"


def test_a_configuration_that_is_locked_no_more_goes_unless_it_was_edited(lock: Lock) -> None:
    written(lock)
    lock.remove_configs(lock)
    config = lock.path.with_name("r-6.12.config")
    assert config.read_bytes() == CONFIG
    config.write_bytes(b"edited")
    lock.remove_configs(Lock(lock.path, "r"))
    assert config.exists()
    config.write_bytes(CONFIG)
    lock.remove_configs(Lock(lock.path, "r"))
    assert not config.exists()
    lock.remove_configs(Lock(lock.path, "r"))
    assert changes_of(lock, Lock(lock.path, "r", lock.requests)) == ["kernel: r-6.12.config is out"]


def test_a_linked_in_initramfs_and_the_sandbox_are_no_part_of_a_configuration() -> None:
    def stage(config: str = "base", sandbox: str | None = None, **inputs: str) -> Stage:
        params: dict[str, Json] = {"configs": [config]}
        if sandbox is not None:
            params["sandbox"] = sandbox
        return Stage("kernel", "kernel", 1, params, inputs)

    assert config_key(stage(a="1", initramfs="2")) == config_key(stage(a="1"))
    assert config_key(stage(a="1")) != config_key(stage(a="2"))
    assert config_key(stage(a="1", sandbox="none")) == config_key(stage(a="1"))
    assert config_key(stage(a="1", config="other")) != config_key(stage(a="1"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"schema": 1', '"schema": 2'),
        ('"recipe": "r"', '"recipe": "other"'),
        ('"reference": "blob:a', '"reference": "blob:x'),
        ('"reference": "blob:a', '"reference": "blob:../a'),
        ('"name": "crun_', '"name": "../crun_'),
        ('"size": 7', '"size": "7"'),
        ('"size": 7', '"size": true'),
        ('"file": "r-6.12.config"', '"file": "../../etc/shadow"'),
        ('"file": "r-6.12.config"', '"file": "r.toml"'),
        ('"packing": "zstd"', '"packing": 1'),
        ('"toolchain": "host"', '"toolchain": null'),
        ('"choices": [', '"choices": [], "x": ['),
        ('"choices": [', '"choices": null, "x": ['),
        ('"kernel_configs"', '"configs"'),
        ('"pins": [', '"pins": 1, "x": ['),
        ('"requests": [', '"requests": ['),
        (
            "{",
            "[",
        ),
        ("\n", ""),
    ],
)
def test_what_is_no_lock_of_this_recipe_is_refused(lock: Lock, old: str, new: str) -> None:
    path = written(lock)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    if old == new:
        assert read_lock(path, "r", MEND) is not None
        return
    with pytest.raises(RecipeError, match="can't be used") as caught:
        read_lock(path, "r", MEND)
    assert caught.value.hint.endswith(f"{MEND} --update")


def test_the_line_that_is_not_as_it_was_written_is_named(lock: Lock) -> None:
    path = written(lock)
    text = path.read_text()
    lines = text.splitlines()
    number = next(number for number, line in enumerate(lines, 1) if '"size": 7' in line)
    ours, theirs = lines[number - 1], lines[number - 1].replace("7", "8")
    merge = [f"<<<<<<< HEAD\n{ours}", f"=======\n{theirs}", ">>>>>>> other"]
    for change, why in (
        ("\n".join(merge), f"line {number}: <<<<<<< HEAD"),
        (f" {ours}", f"not as sevkit writes it: line {number}: {ours.strip()}"),
    ):
        path.write_text("\n".join([*lines[: number - 1], change, *lines[number:], ""]))
        with pytest.raises(RecipeError, match="can't be used") as caught:
            read_lock(path, "r", MEND)
        assert why in caught.value.why
    path.write_text(text + "\n")
    with pytest.raises(RecipeError, match="can't be used"):
        read_lock(path, "r", MEND)
    path.write_text(text)
    assert read_lock(path, "r", MEND) is not None


@pytest.mark.parametrize(
    ("asked", "counts"), [(LINUX, [0, 2]), (URL, [0, 2]), (GIT, [0, 2]), (GROUP, [0])]
)
def test_a_request_with_too_few_or_too_many_files_is_refused(
    lock: Lock, asked: Request, counts: list[int]
) -> None:
    pins = lock.pins(asked)
    assert pins is not None
    for count in counts:
        lock.with_pins("x", asked, list(pins) * count).write({})
        with pytest.raises(RecipeError, match="can't be used") as caught:
            read_lock(lock.path, "r", MEND)
        assert "files for" in caught.value.why
    lock.with_pins("x", asked, pins).write({})
    assert read_lock(lock.path, "r", MEND) is not None


@pytest.mark.parametrize(
    ("asked", "change", "why"),
    [
        (LINUX, {"kind": "floppy"}, "floppy"),
        (LINUX, {"kind": None}, "kind"),
        (LINUX, {"kind": "deb-src"}, "for deb = linux-source-6.12"),
        (LINUX, {"kind": "url", "url": "https://example.org"}, "for deb = linux-source-6.12"),
        (LINUX, {"path": None}, "has no path"),
        (LINUX, {"path": "pool/a\0b"}, "characters that no address has"),
        (URL, {"url": "https://example.org/a\x1b"}, "characters that no address has"),
        (LINUX, {"package": None}, "has no package"),
        (GROUP, {"version": None}, "has no version"),
        (URL, {"url": None}, "has no url"),
        (GIT, {"url": None}, "has no url"),
        (GIT, {"commit": None}, "has no commit"),
        (GIT, {"commit": "f" * 40}, "names no content of kind git"),
        (URL, {"kind": "git", "commit": "c" * 64}, "names no content of kind git"),
    ],
)
def test_a_pin_that_does_not_say_where_its_file_is_to_be_had_is_refused(
    lock: Lock, asked: Request, change: dict[str, str | None], why: str
) -> None:
    pins = lock.pins(asked)
    assert pins is not None
    origin = {key: text for key, text in {**pins[0].origin, **change}.items() if text is not None}
    lock.with_pins("x", asked, [replace(pins[0], origin=origin)]).write({})
    with pytest.raises(RecipeError, match="can't be used") as caught:
        read_lock(lock.path, "r", MEND)
    assert why in caught.value.why


@pytest.mark.parametrize("asked", [URL, GIT])
def test_a_lock_does_not_say_otherwise_than_a_recipe_that_names_a_digest_or_commit(
    lock: Lock, asked: Request
) -> None:
    pins = lock.pins(asked)
    assert pins is not None
    [one] = pins
    digit = "b" if asked is URL else "f"
    other = f"{one.reference[:-4]}{digit * 4}"
    commit = {"commit": other[4:]} if asked is GIT else {}
    for changed in (
        replace(one, reference=other, origin={**one.origin, **commit}),
        replace(one, origin={**one.origin, "url": "file:///home/somebody/private"}),
    ):
        lock.with_pins("x", asked, [changed]).write({})
        read = read_lock(lock.path, "r", MEND)
        assert read is not None
        with pytest.raises(RecipeError, match="locks x to something else than the rec") as caught:
            read.pins(asked)
        assert changed.reference in caught.value.why
        assert changed.origin["url"] in caught.value.why
        assert "secret" not in str(caught.value)
        assert caught.value.hint == MEND
        assert read.pins(LINUX)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_gives_a_lock_or_one_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.getbasetemp() / "lock-fuzz.lock"
    lock = Lock(base, "r").with_pins("linux", LINUX, [pin("linux")])
    value = json.loads(lock.with_config("d" * 64, "6.12", CONFIG, Choice("host", PACKED)).text())
    place = value
    while isinstance(place, dict | list) and place:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if data.draw(st.booleans()) or not isinstance(place[key], dict | list) or not place[key]:
            place[key] = data.draw(JSON)
            break
        place = place[key]
    base.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    with contextlib.suppress(RecipeError):
        read_lock(base, "r", MEND)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=60))
def test_any_bytes_give_one_error(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.lock"
    path.write_bytes(raw)
    with pytest.raises(RecipeError, match="can't be used"):
        read_lock(path, "r", MEND)
