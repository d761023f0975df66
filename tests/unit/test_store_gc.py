# SPDX-License-Identifier: Apache-2.0
"""What is collected from a store, and above all what is not."""

import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from documented import PAGES, read

from sevkit.canonical import sha256_of
from sevkit.cli import main
from sevkit.stage import Stage
from sevkit.store.gc import collect
from sevkit.store.store import Store

DAY = 24 * 3600


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def a_stage(name: str) -> Stage:
    return Stage(name, "k", 1, {"name": name}, {})


def make_entry(store: Store, name: str, *, size: int = 8192, days_ago: float = 0) -> Path:
    """An entry that was used so long ago by somebody who is gone."""
    stage = a_stage(name)
    with store.scratch() as scratch:
        (scratch / "out").mkdir()
        (scratch / "out" / "file").write_bytes(os.urandom(size))
        store.publish(stage, scratch / "out")
    entry = store.open(stage.key).parent
    age(entry, days_ago)
    return entry


def make_blob(store: Store, content: bytes, *, days_ago: float = 0) -> str:
    with store.scratch() as scratch:
        (scratch / "f").write_bytes(content)
        reference = f"blob:{sha256_of(scratch / 'f')}"
        store.add_blob(scratch / "f", reference)
    age(store.blob(reference), days_ago)
    return reference


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then))


class TestWhatGoes:
    def test_by_age_what_was_used_lately_stays(self, root: Path) -> None:
        old = make_entry(Store(root), "old", days_ago=40)
        new = make_entry(Store(root), "new", days_ago=20)
        blob = make_blob(Store(root), b"old blob", days_ago=40)
        done = collect(Store(root), older_than_seconds=30 * DAY)
        assert not old.exists()
        assert new.exists()
        assert not Store(root).has_blob(blob)
        assert done.counts["entries"] == done.counts["blobs"] == 1
        assert done.freed_bytes >= 8192 + 8
        assert list((root / "tmp").iterdir()) == []

    def test_by_size_what_was_used_longest_ago_goes_first_and_no_more_than_needed(
        self, root: Path
    ) -> None:
        entries = [
            make_entry(Store(root), f"e{days}", size=1 << 20, days_ago=days) for days in range(5)
        ]
        done = collect(Store(root), max_bytes=(3 << 20) + (1 << 19))
        assert [entry.exists() for entry in entries] == [True, True, True, False, False]
        assert 3 << 20 <= done.left_bytes <= (3 << 20) + (1 << 19)
        assert collect(Store(root), max_bytes=(3 << 20) + (1 << 19)).counts["entries"] == 0

    def test_reading_an_entry_makes_it_recently_used(self, root: Path) -> None:
        entry = make_entry(Store(root), "read", days_ago=40)
        blob = make_blob(Store(root), b"read", days_ago=40)
        Store(root).open(a_stage("read").key)
        Store(root).has_blob(blob)
        assert not collect(Store(root), older_than_seconds=DAY).counts["entries"]
        assert entry.exists()
        assert Store(root).has_blob(blob)

    def test_a_dry_run_says_the_same_and_removes_nothing(self, root: Path) -> None:
        entry = make_entry(Store(root), "old", days_ago=40)
        (root / "locks" / "x").touch()
        (root / "tmp" / "dead").mkdir()
        (root / "tmp" / "dead.lock").touch()
        said = collect(Store(root), older_than_seconds=DAY, dry_run=True)
        assert entry.exists()
        assert (root / "locks" / "x").exists()
        assert (root / "tmp" / "dead").exists()
        done = collect(Store(root), older_than_seconds=DAY)
        assert (done.counts, done.freed_bytes) == (said.counts, said.freed_bytes)
        assert done.counts["unfinished builds"] == 1
        assert not entry.exists()

    def test_notes_of_what_is_gone_go_and_others_stay(self, root: Path) -> None:
        store = Store(root)
        make_entry(store, "gone", days_ago=40)
        make_entry(store, "here")
        store.remember_last("recipe", a_stage("gone"))
        store.remember_last("recipe", a_stage("here"))
        for commit, content, days in (("a" * 40, b"gone", 40.0), ("b" * 40, b"here", 0.0)):
            with store.scratch() as scratch:
                (scratch / "tar").write_bytes(content)
                store.add_blob(scratch / "tar", f"git:{commit}")
            age(store.blob(f"git:{commit}"), days)
        del store
        collect(Store(root), older_than_seconds=DAY)
        assert [path.name for path in (root / "last" / "recipe").iterdir()] == ["here"]
        assert [path.name for path in (root / "commits").iterdir()] == ["b" * 40]
        assert Store(root).blob("git:" + "b" * 40).read_bytes() == b"here"

    def test_a_pin_stays_while_a_result_was_made_from_it(self, root: Path) -> None:
        store = Store(root)
        stage = Stage("used", "k", 1, {}, {"source": "blob:" + "a" * 64})
        with store.scratch() as scratch:
            (scratch / "out").mkdir()
            store.publish(stage, scratch / "out")
        for name, digit in (("used", "a"), ("idle", "b"), ("fresh", "c")):
            pin = root / "pins" / f"{name}.json"
            pin.write_text(f'{{"pins": [{{"reference": "blob:{digit * 64}"}}]}}')
            age(pin, 0 if name == "fresh" else 2)
        half_written = root / "pins" / "used.0123abcd"
        half_written.write_text((root / "pins" / "used.json").read_text())
        age(half_written, 2)
        collect(Store(root), older_than_seconds=DAY)
        assert {pin.name for pin in (root / "pins").iterdir()} == {"used.json", "fresh.json"}

    def test_half_a_download_goes_after_a_day_unless_somebody_is_at_it(self, root: Path) -> None:
        store = Store(root)
        for name, days in (("blob-new", 0.0), ("blob-old", 2.0), ("blob-busy", 2.0)):
            (root / "partial" / name).write_bytes(b"half")
            age(root / "partial" / name, days)
        with store.lock("blob-busy", lambda: None):
            done = collect(Store(root), older_than_seconds=30 * DAY)
        assert {path.name for path in (root / "partial").iterdir()} == {"blob-new", "blob-busy"}
        assert done.counts["partial fetches"] == 1

    def test_lock_files_go_unless_they_are_held(self, root: Path) -> None:
        store = Store(root)
        with store.lock("held", lambda: None), store.lock("free", lambda: None):
            pass
        with store.lock("held", lambda: None):
            collect(Store(root))
            assert [path.name for path in (root / "locks").iterdir()] == ["held"]

    def test_what_killed_builds_left_goes(self, root: Path) -> None:
        store = Store(root)
        (root / "tmp" / "dead").mkdir()
        (root / "tmp" / "dead.lock").touch()
        with store.scratch() as alive:
            assert collect(Store(root)).counts["unfinished builds"] == 1
            assert alive.is_dir()
        assert list((root / "tmp").iterdir()) == []


class TestWhatIsInUse:
    def test_what_this_process_looked_up_stays_until_it_lets_go(self, root: Path) -> None:
        entry = make_entry(Store(root), "used", days_ago=40)
        builder = Store(root)
        assert builder.has(a_stage("used").key)
        age(entry, 40)
        done = collect(Store(root), older_than_seconds=DAY, max_bytes=0)
        assert entry.exists()
        assert done.in_use == 1
        del builder
        assert collect(Store(root), older_than_seconds=DAY).counts["entries"] == 1
        assert not entry.exists()

    def test_what_another_process_published_stays_until_it_dies(self, root: Path) -> None:
        Store(root)
        code = textwrap.dedent(f"""
            import sys
            from pathlib import Path
            sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]}
            from test_store_gc import Store, make_blob, make_entry
            store = Store(Path({str(root)!r}))
            make_entry(store, "mine", days_ago=40)
            make_blob(store, b"mine", days_ago=40)
            print("ready", flush=True)
            sys.stdin.read()
        """)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with process:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            assert collect(Store(root), max_bytes=0).in_use == 2
            assert len(list((root / "leases").iterdir())) == 1
            process.send_signal(signal.SIGKILL)
            process.wait()
        done = collect(Store(root), max_bytes=0)
        assert done.counts["entries"] == done.counts["blobs"] == 1
        assert list((root / "leases").iterdir()) == []

    def test_what_no_room_was_left_to_note_is_not_taken_for_used(self, root: Path) -> None:
        """A limit on the size of files cuts a write short, as a disk does that fills up."""
        names = [make_entry(Store(root), f"e{number}").name for number in range(3)]
        code = textwrap.dedent(f"""
            import resource, sys
            from pathlib import Path
            from sevkit.store.store import Store
            store = Store(Path({str(root)!r}))
            first, second, third = {names!r}
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            line = len(f"entries/ab/{{first}}") + 1
            for name, limit in ((first, line + 20), (second, line + 20), (third, hard)):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
                try:
                    store.has(name)
                except OSError as error:
                    print(error.strerror)
            print("ready", flush=True)
            sys.stdin.read()
        """)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with process:
            assert process.stdout
            assert process.stdout.readline() == "File too large\n"
            assert process.stdout.readline() == "ready\n"
            collect(Store(root), max_bytes=0)
            left = {path.name for path in root.glob("entries/*/*")}
            assert left == {names[0], names[2]}
            process.communicate("")

    def test_with_something_in_use_a_younger_one_goes_in_its_place(self, root: Path) -> None:
        oldest = make_entry(Store(root), "oldest", size=1 << 20, days_ago=3)
        older = make_entry(Store(root), "older", size=1 << 20, days_ago=2)
        builder = Store(root)
        builder.open(a_stage("oldest").key)
        age(oldest, 3)
        collect(Store(root), max_bytes=(1 << 20) + (1 << 19))
        assert (oldest.exists(), older.exists()) == (True, False)

    def test_a_store_within_the_store_is_left_alone_and_keeps_what_it_shares(
        self, root: Path
    ) -> None:
        """As a build that is repeated for comparison has one."""
        reference = make_blob(Store(root), b"source", days_ago=40)
        with Store(root).scratch() as scratch:
            inner = Store(scratch / "store")
            (scratch / "source").hardlink_to(Store(root).blob(reference))
            inner.add_blob(scratch / "source", reference)
            make_entry(inner, "inner", days_ago=40)
            assert collect(Store(root), max_bytes=0).counts["blobs"] == 1
            assert inner.blob(reference).read_bytes() == b"source"
            assert inner.has(a_stage("inner").key)
        assert not Store(root).has_blob(reference)

    def test_leftovers_stay_while_a_stage_of_their_kind_runs(self, root: Path) -> None:
        builder = Store(root)
        left = builder.leftovers("kernel") / "objects"
        left.write_bytes(b"objects")
        age(left, 40)
        collect(Store(root), max_bytes=0)
        assert left.exists()
        del builder
        collect(Store(root), max_bytes=0)
        assert not left.exists()


class TestCommand:
    def run(self, root: Path, *words: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["gc", *words], env={"SEVKIT_STORE": str(root)})
        return result.exit_code, result.output

    def test_gc_says_what_it_removed_and_what_is_left(self, root: Path) -> None:
        make_entry(Store(root), "old", size=3 << 20, days_ago=40)
        make_entry(Store(root), "new", size=1 << 20)
        status, said = self.run(root, "--dry-run")
        assert "would remove: 1 entries" in said
        status, said = self.run(root)
        assert status == 0
        assert "removed: 1 entries" in said
        assert "3.0 MiB" in said
        assert "store: 1.0 MiB" in said

    @pytest.mark.parametrize("words", [("--older-than", "soon"), ("--max-size", "20")])
    def test_an_age_or_size_without_a_unit_is_refused(
        self, root: Path, words: tuple[str, str]
    ) -> None:
        status, said = self.run(root, *words)
        assert status == 2
        assert "write" in said
        assert self.run(root, "--older-than", "2w", "--max-size", "20GiB")[0] == 0

    def test_clean_leaves_a_store_that_is_in_use_alone(self, root: Path, tmp_path: Path) -> None:
        make_entry(Store(root), "e")
        builder = Store(root)
        builder.has(a_stage("e").key)
        words = ["--output", str(tmp_path / "output"), "clean", "--store"]
        environment = {"SEVKIT_STORE": str(root)}
        refused = CliRunner().invoke(main, words, env=environment)
        assert "running build" in str(refused.exception)
        assert root.exists()
        del builder
        assert CliRunner().invoke(main, words, env=environment).exit_code == 0
        assert not root.exists()


def test_the_commands_of_the_page_work(root: Path, tmp_path: Path) -> None:
    [page] = [page for page in PAGES if page.name == "store.md"]
    commands = [command.line for command in read(page).commands]
    assert len(commands) == 7
    for line in commands:
        words = ["--output", str(tmp_path / "output"), *shlex.split(line)[1:]]
        result = CliRunner().invoke(main, words, env={"SEVKIT_STORE": str(root)})
        assert result.exit_code == 0, line
