# SPDX-License-Identifier: Apache-2.0
"""The memory of what packages resolved to."""

import json
import os
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sevkit.addresses import shown_address
from sevkit.recipe.model import DebSource, FileSource, GitSource, UrlSource
from sevkit.sources import Apt, DebGroup, Pin, PinMemory, resolve, self_pinned
from sevkit.sources.pins import described, read_pins, without_credentials

ORIGIN = {"kind": "deb", "package": "crun", "version": "1.8", "path": "pool/main/c/crun/x.deb"}
PIN = Pin("blob:" + "ab" * 32, "crun_1.8_amd64.deb", 289288, ORIGIN)
REQUEST = DebSource(deb="crun", suite="trixie")
GROUP = DebGroup(("crun",), "trixie")


@pytest.fixture
def memory(tmp_path: Path) -> PinMemory:
    return PinMemory(tmp_path / "pins")


def test_what_was_remembered_is_recalled_until_something_else_is(memory: PinMemory) -> None:
    assert memory.recall(REQUEST) is None
    memory.remember(GROUP, [PIN, PIN])
    assert memory.recall(GROUP) == [PIN, PIN]
    assert PinMemory(memory.folder).recall(GROUP) == [PIN, PIN]
    memory.remember(GROUP, [PIN])
    assert memory.recall(GROUP) == [PIN]


def test_in_a_shared_folder_everybody_can_read_it_whatever_the_umask(memory: PinMemory) -> None:
    memory.folder.mkdir(mode=0o775)
    memory.folder.chmod(0o2775)
    umask = os.umask(0o077)
    try:
        memory.remember(REQUEST, [PIN])
    finally:
        os.umask(umask)
    [path] = memory.folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o664


def test_another_request_is_not_mixed_up_with_it(memory: PinMemory) -> None:
    memory.remember(REQUEST, [PIN])
    for other in (
        DebSource(deb="crun"),
        DebSource(deb="crun", suite="sid"),
        DebSource(deb="crun", suite="trixie", version="1.8"),
        GROUP,
    ):
        assert memory.recall(other) is None
    assert memory.recall(DebSource(deb="crun", suite="trixie", member="usr/bin/crun")) == [PIN]


@pytest.mark.parametrize(
    "change",
    [
        lambda record: {},
        lambda record: [],
        lambda record: {**record, "schema": 99},
        lambda record: {**record, "request": {"deb": "other"}},
        lambda record: {**record, "pins": "text"},
        lambda record: {**record, "pins": [{**record["pins"][0], "reference": "blob:1"}]},
        lambda record: {**record, "pins": [{**record["pins"][0], "reference": "git:" + "a" * 40}]},
        lambda record: {**record, "pins": [{**record["pins"][0], "name": "../evil"}]},
        lambda record: {**record, "pins": [{**record["pins"][0], "name": ".."}]},
        lambda record: {**record, "pins": [{**record["pins"][0], "size": "big"}]},
        lambda record: {**record, "pins": [{**record["pins"][0], "origin": {"kind": 1}}]},
        lambda record: {**record, "pins": [{**record["pins"][0], "more": 1}]},
    ],
)
def test_a_damaged_record_is_looked_up_anew(memory: PinMemory, change: Any) -> None:
    memory.remember(REQUEST, [PIN])
    [path] = memory.folder.iterdir()
    good = path.read_bytes()
    path.write_text(json.dumps(change(json.loads(good))))
    assert memory.recall(REQUEST) is None
    path.write_bytes(good)
    assert memory.recall(REQUEST) == [PIN]


def test_a_record_that_is_cut_off_is_looked_up_anew(memory: PinMemory) -> None:
    memory.remember(REQUEST, [PIN])
    [path] = memory.folder.iterdir()
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        assert memory.recall(REQUEST) is None
    memory.remember(REQUEST, [PIN])
    assert memory.recall(REQUEST) == [PIN]


def test_builds_that_remember_at_once_leave_one_whole_record(memory: PinMemory) -> None:
    def remember(number: int) -> None:
        for _ in range(20):
            memory.remember(GROUP, [PIN] * number)
            seen.append(memory.recall(GROUP))

    seen: list[object] = []
    threads = [threading.Thread(target=remember, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in seen
    assert len(list(memory.folder.iterdir())) == 1


def test_a_request_that_pins_itself_asks_nobody_and_is_not_remembered(
    memory: PinMemory, tmp_path: Path
) -> None:
    url = UrlSource.model_validate(
        {"url": ["https://a.example/linux.tar.xz?x=1", "https://b.example/l"], "sha256": "0" * 64}
    )
    git = GitSource(git="https://a.example/linux.git", commit="1" * 40)
    [url_pin], [git_pin] = resolve(url, Apt(tmp_path)), resolve(git, Apt(tmp_path))
    assert (url_pin.reference, url_pin.name) == (f"blob:{'0' * 64}", "linux.tar.xz")
    assert (git_pin.reference, git_pin.name) == (f"git:{'1' * 40}", "linux-111111111111.tar")
    file = FileSource(file=tmp_path / "fw.fd")
    assert resolve(file, Apt(tmp_path)) == []
    for request, pins in ((url, [url_pin]), (git, [git_pin]), (file, [])):
        assert self_pinned(request) == pins
        memory.remember(request, pins)
    assert self_pinned(REQUEST) is None
    assert not memory.folder.exists()
    memory.remember(REQUEST, [PIN])
    assert memory.folder.exists()


@pytest.mark.parametrize("end", ["", "/", "/.", "/..", "/x/../", "/file", "/?a=/b"])
def test_whatever_an_address_ends_in_its_pin_can_be_read_back(end: str) -> None:
    request = UrlSource(url=(f"https://a.example{end}",), sha256="0" * 64)
    pins = self_pinned(request)
    assert pins is not None
    assert read_pins([asdict(pin) for pin in pins], described(request)) == pins


def test_every_path_that_was_looked_at_is_observed(memory: PinMemory) -> None:
    memory.recall(REQUEST)
    memory.remember(REQUEST, [PIN])
    assert memory.observed == set(memory.folder.iterdir())


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("https://me:secret@a.example/x", "https://a.example/x"),
        ("https://token@a.example/x", "https://a.example/x"),
        ("https://a:b@c@a.example:8443/x", "https://a.example:8443/x"),
        ("HTTP://me:secret@a.example/x", "HTTP://a.example/x"),
        ("ftp://me:secret@a.example/x", "ftp://a.example/x"),
        ("ssh://git:secret@a.example/x", "ssh://git@a.example/x"),
        ("ssh://git@a.example:22/x", "ssh://git@a.example:22/x"),
        ("https://a.example/x@2?to=me@b", "https://a.example/x@2?to=me@b"),
        (
            "https://me:s@a.example/x\nhttps://b.example/x",
            "https://a.example/x\nhttps://b.example/x",
        ),
    ],
)
def test_credentials_stay_out_of_what_is_published(asked: str, shown: str) -> None:
    assert without_credentials({"kind": "url", "url": asked}) == {"kind": "url", "url": shown}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redirects to 'https://me:s3cret@a.example/x'", "redirects to 'https://a.example/x'"),
        ("http://a.example: says me@b.example", "http://a.example: says me@b.example"),
        ("a." * 50_000, "a." * 50_000),
    ],
)
def test_credentials_stay_out_of_what_is_said(text: str, shown: str) -> None:
    assert shown_address(text) == shown


@pytest.mark.parametrize(
    "source",
    [
        UrlSource(url=("http://ci:s3cret@a.example",), sha256="0" * 64),
        GitSource(git="http://ci:s3cret@a.example", commit="1" * 40),
    ],
)
def test_credentials_stay_out_of_the_names_of_files(source: UrlSource | GitSource) -> None:
    [pin] = self_pinned(source) or ()
    assert pin.name.startswith("a.example")
    assert "s3cret" in pin.origin["url"]
