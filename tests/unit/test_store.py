# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest

from sevkit.canonical import sha256_of
from sevkit.disk import full_disk_explained
from sevkit.errors import ImageError, SevkitError
from sevkit.stage import Local, Stage
from sevkit.store.listing import list_tree, tree_digest
from sevkit.store.store import Store


def a_stage(**params: str) -> Stage:
    return Stage(name="s", kind="k", version=1, params=params, inputs={})


def a_result(folder: Path, text: str = "hello") -> Path:
    folder.mkdir()
    (folder / "file").write_text(text)
    (folder / "link").symlink_to("file")
    (folder / "sub").mkdir()
    (folder / "sub" / "tool").write_text("#!/bin/sh\n")
    (folder / "sub" / "tool").chmod(0o755)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_published_result_is_read_back_whole(store: Store, tmp_path: Path) -> None:
    stage = a_stage()
    assert not store.has(stage.key)
    assert store.publish(stage, a_result(tmp_path / "r")) == "taken"
    data = store.open(stage.key)
    assert (data / "file").read_text() == "hello"
    assert (data / "link").readlink() == Path("file")
    assert os.access(data / "sub" / "tool", os.X_OK)
    assert store.record(stage.key) == stage.record()


def test_publishing_the_same_bytes_again_changes_nothing(store: Store, tmp_path: Path) -> None:
    store.publish(a_stage(), a_result(tmp_path / "a"))
    before = store.open(a_stage().key).stat().st_ino
    assert store.publish(a_stage(), a_result(tmp_path / "b")) == "taken"
    assert store.open(a_stage().key).stat().st_ino == before


def test_other_bytes_replace_a_result_unless_another_build_uses_it(
    store: Store, tmp_path: Path
) -> None:
    store.publish(a_stage(), a_result(tmp_path / "a"))
    assert store.publish(a_stage(), a_result(tmp_path / "b", "other")) == "replaced"
    another_build = Store(store.root)
    used = another_build.open(a_stage().key) / "file"
    assert store.publish(a_stage(), a_result(tmp_path / "c", "third")) == "kept"
    assert used.read_text() == "other"
    assert store.publish(a_stage(), a_result(tmp_path / "d", "other")) == "taken"
    used.write_text("harmed")
    assert store.publish(a_stage(), a_result(tmp_path / "e")) == "taken", "damage serves nobody"
    assert used.read_text() == "hello"
    del another_build
    assert store.publish(a_stage(), a_result(tmp_path / "f", "third")) == "replaced"


DAMAGE = ["flip", "remove", "add", "mode", "retarget", "listing"]


def harm(data: Path, damage: str) -> None:
    match damage:
        case "flip":
            (data / "file").write_text("hellp")
        case "remove":
            (data / "file").unlink()
        case "add":
            (data / "extra").write_text("")
        case "mode":
            (data / "sub" / "tool").chmod(0o644)
        case "retarget":
            (data / "link").unlink()
            (data / "link").symlink_to("/etc/passwd")
        case "listing":
            (data.parent / "content.json").write_text("[")
        case "record":
            (data.parent / "key.json").write_text("{}")


@pytest.mark.parametrize("damage", [*DAMAGE, "record"])
def test_publishing_over_a_damaged_entry_replaces_it(
    store: Store, tmp_path: Path, damage: str
) -> None:
    store.publish(a_stage(), a_result(tmp_path / "a"))
    harm(store.open(a_stage().key), damage)
    assert store.publish(a_stage(), a_result(tmp_path / "b")) == "taken", "not: other bytes"
    assert (store.open(a_stage().key) / "file").read_text() == "hello"
    assert store.record(a_stage().key) == a_stage().record()


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_refused_and_removed(store: Store, tmp_path: Path, damage: str) -> None:
    good, bad = a_stage(which="good"), a_stage(which="bad")
    store.publish(good, a_result(tmp_path / "good"))
    store.publish(bad, a_result(tmp_path / "bad"))
    harm(store.open(bad.key), damage)
    with pytest.raises(ImageError, match="damaged") as caught:
        store.open(bad.key)
    assert "build again" in caught.value.hint
    assert not store.has(bad.key)
    assert (store.open(good.key) / "file").read_text() == "hello"


def test_a_blob_is_hashed_before_it_is_used(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("content")
    reference = f"blob:{sha256_of(tmp_path / 'f')}"
    store.add_blob(tmp_path / "f", reference)
    path = store.blob(reference)
    assert path.read_text() == "content"
    path.chmod(0o644)
    path.write_text("c0ntent")
    with pytest.raises(ImageError, match="damaged"):
        store.blob(reference)
    assert not store.has_blob(reference)


def test_a_blob_with_other_bytes_than_its_name_is_not_taken(store: Store, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("content")
    with pytest.raises(ImageError, match="SHA-256"):
        store.add_blob(tmp_path / "f", "blob:" + "0" * 64)
    assert not store.has_blob("blob:" + "0" * 64)


def test_a_commit_names_the_blob_of_its_archive(store: Store, tmp_path: Path) -> None:
    (tmp_path / "tar").write_text("tar")
    reference = "git:" + "a" * 40
    assert not store.has_blob(reference)
    store.add_blob(tmp_path / "tar", reference)
    assert store.blob(reference).read_text() == "tar"


def test_a_local_folder_is_kept_and_laid_out_again(store: Store, tmp_path: Path) -> None:
    folder = a_result(tmp_path / "agent")
    reference = f"tree:{tree_digest(list_tree(folder))}"
    store.add_local(Local(folder), reference)
    store.lay_out(reference, tmp_path / "again")
    assert list_tree(tmp_path / "again") == list_tree(folder)
    (folder / "file").write_text("changed")
    with pytest.raises(ImageError, match="changed while"):
        store.add_local(Local(folder), reference)


def test_a_name_is_left_out_at_the_top_of_a_folder_alone(tmp_path: Path) -> None:
    for path in ("build/x", "lib/build/y", "buildings"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    (tmp_path / ".git").write_text("gitdir: elsewhere")
    paths = [row["path"] for row in list_tree(tmp_path, leave_out={"build", ".git"})]
    assert paths == ["buildings", "lib", "lib/build", "lib/build/y"]


def test_the_digest_of_a_folder_ignores_order_times_and_umask(tmp_path: Path) -> None:
    names = ["b", "a", "c/d"]
    digests = set()
    for number, order in enumerate([names, names[::-1]]):
        root = tmp_path / str(number)
        for name in order:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name)
            (root / name).chmod(0o600 if number else 0o644)
            os.utime(root / name, (number, number))
        digests.add(tree_digest(list_tree(root)))
    assert len(digests) == 1


def test_a_folder_with_a_pipe_in_it_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match="pipe"):
        list_tree(tmp_path)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "target"])
def test_a_name_that_is_not_utf_8_is_refused_by_name(
    store: Store, tmp_path: Path, kind: str
) -> None:
    result = a_result(tmp_path / "result")
    (result / "café").touch()
    store.publish(a_stage(which="good"), shutil.copytree(result, tmp_path / "good", symlinks=True))
    latin = os.fsdecode(b"caf\xe9")
    match kind:
        case "file":
            (result / latin).touch()
        case "folder":
            (result / latin / "sub").mkdir(parents=True)
        case "link":
            (result / latin).symlink_to("café")
        case "target":
            (result / "link to it").symlink_to(latin)
    for refused in (partial(list_tree, result), partial(store.publish, a_stage(), result)):
        with pytest.raises(ImageError, match=r"the name 'caf\\xe9' is not UTF-8") as caught:
            refused()
        str(caught.value).encode()
        assert caught.value.hint
    assert (store.open(a_stage(which="good").key) / "café").exists()


def test_scratch_folders_vanish_also_after_an_error(store: Store) -> None:
    def fail() -> None:
        with store.scratch() as folder:
            (folder / "locked").mkdir()
            (folder / "locked" / "file").write_text("x")
            (folder / "locked").chmod(0o500)
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert list((store.root / "tmp").iterdir()) == []


def test_what_a_killed_process_left_is_swept_but_not_what_a_living_one_uses(store: Store) -> None:
    code = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from sevkit.store.store import Store
        with Store(Path({str(store.root)!r})).scratch() as folder:
            (folder / "half").write_text("made")
            print("ready", flush=True)
            sys.stdin.read()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        store.sweep()
        assert len(list((store.root / "tmp").glob("*/half"))) == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    store.sweep()
    assert list((store.root / "tmp").iterdir()) == []


def test_a_lock_is_waited_for_and_dies_with_its_process(store: Store) -> None:
    code = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from sevkit.store.store import Store
        with Store(Path({str(store.root)!r})).lock("x", lambda: None):
            print("held", flush=True)
            sys.stdin.read()
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        waited = []

        def waiting() -> None:
            waited.append(1)
            process.kill()

        with store.lock("x", waiting):
            assert waited


def test_a_full_disk_names_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(SevkitError, match="no space left") as caught, full_disk_explained(tmp_path):
        Path("/dev/full").write_text("x")
    assert str(tmp_path) in str(caught.value)


def test_the_key_record_can_be_read_by_people(store: Store, tmp_path: Path) -> None:
    store.publish(a_stage(flavour="vanilla"), a_result(tmp_path / "r"))
    [path] = store.root.glob("entries/*/*/key.json")
    assert json.loads(path.read_text())["params"] == {"flavour": "vanilla"}
    assert len(path.read_text().splitlines()) > 3
