# SPDX-License-Identifier: Apache-2.0
"""One store, many processes: builds beside a collector, and users beside each other."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_lab import Lab, damage

from sevkit.store.gc import collect
from sevkit.store.store import Store

TESTS = Path(__file__).resolve().parents[1]
BUILDER_ROOT = TESTS.parent / "builder"

BUILDER = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from crash_lab import Lab
    place = Path({place!r})
    end, count = time.monotonic() + {seconds}, 0
    while time.monotonic() < end or (count < 2 and time.monotonic() < end + 120):
        Lab.in_folder(place / "lab", str(count % 3)).build(place)
        count += 1
    print(count)
"""
COLLECTOR = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    import crash_lab
    from sevkit.store.store import Store
    from sevkit.store.gc import collect
    end, count = time.monotonic() + {seconds}, 0
    while time.monotonic() < end or (count < 2 and time.monotonic() < end + 120):
        done = collect(Store(Path({place!r}) / "store"), older_than_seconds=0, max_bytes=0)
        count += done.counts["entries"]
    print(count)
"""


def start(code: str, **values: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code).format(**values)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_no_build_fails_while_everything_unused_is_collected_all_the_time(tmp_path: Path) -> None:
    Lab.in_folder(tmp_path / "lab")
    values = {"tests": str(TESTS), "place": str(tmp_path), "seconds": 5}
    builders = [start(BUILDER, **values) for _ in range(3)]
    collectors = [start(COLLECTOR, **values) for _ in range(2)]
    counts = []
    for process in [*builders, *collectors]:
        said, trouble = process.communicate(timeout=300)
        assert process.returncode == 0, trouble
        counts.append(int(said))
    assert min(counts[:3]) >= 2
    assert sum(counts[3:]) >= 4, "nothing was collected beside the builds"
    assert list(damage(tmp_path)) == []
    collect(Store(tmp_path / "store"), max_bytes=0)
    assert list((tmp_path / "store").glob("entries/*/*")) == []


def test_gc_makes_room_on_a_disk_that_has_none_for_anything_new(tmp_path: Path) -> None:
    """Without a free inode nothing can be moved to a trash folder first."""
    fill = f"""
import sys
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / "unit")!r}]
from pathlib import Path
from test_store_gc import Store, make_blob, make_entry
for number in range(5):
    make_entry(Store(Path("store")), str(number))
    make_blob(Store(Path("store")), b"%d" % number)
try:
    for number in range(1000):
        Path(str(number)).touch()
except OSError:
    sys.exit(0)
"""
    (tmp_path / "fill.py").write_text(fill)
    (tmp_path / "disk").mkdir()
    script = f"""
        mount -t tmpfs -o nr_inodes=120 tmpfs {tmp_path}/disk && cd {tmp_path}/disk &&
        {sys.executable} ../fill.py && ! mkdir more &&
        SEVKIT_STORE=$PWD/store {sys.executable} -m sevkit gc --max-size 0B && mkdir more
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "removed: 5 entries, 5 blobs" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr


# --- users ------------------------------------------------------------------------------------

GROUP = 54321
ANNE, BEN, EVE = 50001, 50002, 50003
UMASKS = {ANNE: 0o077, BEN: 0o022, EVE: 0o022}

BUILD = """
    import sys
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from crash_lab import Lab
    Lab.in_folder(Path({place!r}) / "lab", {text!r}).build(Path({own!r}))
"""
KILLED = """
    import os, signal, sys
    sys.path.insert(0, {builder!r})
    from pathlib import Path
    from sevkit.store.store import Store
    with Store(Path({store!r})).scratch() as folder:
        (folder / "work" / "source").mkdir(parents=True)
        (folder / "work" / "source" / "main.c").touch()
        (folder / "work" / "shut").mkdir(0)
        os.kill(os.getpid(), signal.SIGKILL)
"""


class Users:
    """Builds by several users, whose folders have one store in common."""

    def __init__(self, place: Path):
        self.place = place
        self.store = place / "store"
        self.store.mkdir()
        os.chown(self.store, ANNE, GROUP)
        self.store.chmod(0o2775)
        Lab.in_folder(place / "lab")
        for user in UMASKS:
            (place / str(user)).mkdir()
            os.chown(place / str(user), user, user)
            (place / str(user) / "store").symlink_to(self.store)

    def start(self, user: int, text: str = "") -> "subprocess.Popen[str]":
        """A build by `user`, who is in the group unless it is Eve."""
        own = str(self.place / str(user))
        return self.run(user, BUILD, tests=str(TESTS), place=str(self.place), own=own, text=text)

    def run(self, user: int, code: str, **values: str) -> "subprocess.Popen[str]":
        """Python code, with `values` put in, run by `user`."""
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code).format(**values)],
            user=user,
            group=user,
            extra_groups=[] if user == EVE else [GROUP],
            umask=UMASKS[user],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def build(self, user: int, text: str = "") -> tuple[int, str]:
        """Wait for such a build: its exit status, and what it said of a failure."""
        process = self.start(user, text)
        _, trouble = process.communicate(timeout=300)
        return process.returncode, trouble

    def gc(self, user: int) -> str:
        """Collect all that can be, through the command."""
        return subprocess.run(
            [sys.executable, "-m", "sevkit", "gc", "--max-size", "0B"],
            user=user,
            group=user,
            extra_groups=[GROUP],
            umask=UMASKS[user],
            env={**os.environ, "SEVKIT_STORE": str(self.store), "PYTHONPATH": str(BUILDER_ROOT)},
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        ).stdout


@pytest.fixture
def users() -> Iterator[Users]:
    if os.geteuid() != 0:
        pytest.skip("only root can run processes of several users")
    with tempfile.TemporaryDirectory(prefix="sevkit-users-") as name:
        Path(name).chmod(0o755)
        made = Users(Path(name))
        seen = subprocess.run(
            [sys.executable, "-c", "import pydantic; open(__import__('sys').argv[1])", __file__],
            user=ANNE,
            cwd="/",
            capture_output=True,
            check=False,
        )
        if seen.returncode != 0:
            pytest.skip("other users can't read this checkout or its environment")
        yield made


def test_what_one_user_built_the_other_uses_extends_and_collects(users: Users) -> None:
    assert users.build(ANNE) == (0, "")
    fetched = [path.stat().st_ino for path in users.store.glob("blobs/*/*")]
    assert users.build(BEN) == (0, "")
    assert users.build(BEN, "more") == (0, "")
    assert users.build(ANNE, "more") == (0, "")
    assert {path.stat().st_uid for path in users.store.glob("entries/*/*")} == {ANNE, BEN}
    assert set(fetched) <= {path.stat().st_ino for path in users.store.glob("blobs/*/*")}
    for user in (ANNE, BEN):
        assert list(damage(users.place / str(user))) == []
    said = users.gc(BEN)
    assert "left:" not in said
    assert [*users.store.glob("entries/*/*"), *users.store.glob("blobs/*/*")] == []
    assert users.build(ANNE) == (0, "")


def test_users_build_side_by_side(users: Users) -> None:
    running = [users.start(user, text) for text in ("", "x") for user in (ANNE, BEN)]
    for process in running:
        _, trouble = process.communicate(timeout=300)
        assert (process.returncode, trouble) == (0, "")
    assert len(list(users.store.glob("entries/*/*"))) == 4 + 4


def test_damage_to_the_entry_of_another_user_is_mended(users: Users) -> None:
    assert users.build(ANNE) == (0, "")
    shutil.rmtree(users.place / str(BEN) / "output", ignore_errors=True)
    for file in users.store.glob("entries/*/*/data/1"):
        file.write_bytes(b"other")
    status, trouble = users.build(BEN, "more")
    assert status == 0, trouble  # its own stages do not read those
    for key in users.store.glob("entries/*/*"):
        (key / "data").rename(key / "lost")
    status, trouble = users.build(BEN)
    assert status == 1
    assert "damaged" in trouble
    assert users.build(BEN) == (0, "")


def test_after_one_user_s_build_was_killed_the_other_s_succeeds(users: Users) -> None:
    process = users.start(ANNE)
    while not list(users.store.glob("tmp/*/out")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    [left] = [path for path in (users.store / "tmp").iterdir() if path.is_dir()]
    said = users.gc(BEN)
    assert f"left: {left}, which only the user who made it or root can remove" in said
    partial = users.store / "partial" / f"blob-{'0' * 64}"
    partial.write_bytes(b"half")
    partial.chmod(0o600)
    os.chown(partial, ANNE, GROUP)
    assert users.build(BEN) == (0, "")
    assert users.build(ANNE, "more") == (0, "")
    assert list((users.store / "tmp").iterdir()) == [], "its owner's next build removes the rest"


def test_the_owner_of_tmp_locks_nobody_out_by_sweeping_after_another_one_s_killed_build(
    users: Users,
) -> None:
    assert users.build(ANNE) == (0, "")
    tmp = users.store / "tmp"
    before = tmp.stat()
    assert before.st_uid == ANNE
    killed = users.run(BEN, KILLED, builder=str(BUILDER_ROOT), store=str(users.store))
    assert killed.wait(timeout=300) == -signal.SIGKILL
    [left] = [path for path in tmp.iterdir() if path.is_dir()]
    mode = left.stat().st_mode
    said = users.gc(ANNE)
    assert f"left: {left}, which only the user who made it or root can remove" in said
    assert tmp.stat().st_mode == before.st_mode
    assert left.stat().st_mode == mode
    assert users.build(BEN, "more") == (0, "")
    assert list(tmp.iterdir()) == [], "its owner's next build removes the rest"


def test_who_is_not_in_the_group_and_a_sticky_folder_get_one_clear_error(users: Users) -> None:
    assert users.build(ANNE) == (0, "")
    status, trouble = users.build(EVE)
    assert status == 1
    assert "HostError: the store" in trouble
    assert "belongs to another user" in trouble
    users.store.chmod(0o3775)
    status, trouble = users.build(BEN)
    assert "sticky" in trouble
    users.store.chmod(0o2775)
    assert users.build(BEN) == (0, "")
