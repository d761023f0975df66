# SPDX-License-Identifier: Apache-2.0
"""Builds that are killed, or run out of disk, at random moments; and what must be true afterwards.

A small plan (a fetched file, a local folder, four stages of which three run commands in the
sandbox, an image that is published) goes through the real engine, store and output. The whole lot:

    python tests/crash_lab.py --kills 200 --full-disks 50

tests/integration/test_crashes.py does as much. A trial never repairs anything itself.
"""

import argparse
import contextlib
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent / "builder"), str(TESTS / "unit")]

from image_samples import image as sample_image  # noqa: E402

from sevkit.canonical import sha256_of  # noqa: E402
from sevkit.disk import FullDiskError  # noqa: E402
from sevkit.engine import Engine, Settings, find_work, result  # noqa: E402
from sevkit.image import output  # noqa: E402
from sevkit.image.manifest import verify  # noqa: E402
from sevkit.sources import Pin  # noqa: E402
from sevkit.stage import Local, Plan, Runner, Stage  # noqa: E402
from sevkit.store.listing import list_tree, tree_digest  # noqa: E402
from sevkit.store.store import Store  # noqa: E402

DONE, FULL, FAILED = 0, 10, 11
_FETCHED = random.Random(5).randbytes(200_000)
_SETTLE_SECONDS = 30.0


class _Recipe:
    name = "made-up"
    version = "1.0.0"
    debug = False


def _build_crash(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """Copy what comes in and write a few files, through commands that take their time."""
    if stage.name == "image":
        for file in inputs["template"].iterdir():
            shutil.copyfile(file, out / file.name)
        return
    if run.leftovers is not None:
        (run.work / "left").write_bytes(bytes(20_000))
        (run.work / "left").replace(run.leftovers / stage.name)
    write = 'for i in 1 2 3 4 5 6 7 8 9; do head -c 12000 /dev/zero > "$1/$i" || exit 1; done'
    made = run.work / "made"
    made.mkdir()
    run(["sh", "-c", write, "sh", made], cwd=run.work)
    for role, path in sorted(inputs.items()):
        run(["cp", "-r", path, made / role.replace("/", "-")], cwd=run.work)
    shutil.copytree(made, out, dirs_exist_ok=True)
    run(["sleep", "0.02"], cwd=run.work)


def install_stage() -> None:
    """Let the engine find the made-up kind of stage."""
    module = types.ModuleType("sevkit.stages.crash")
    module.build_crash = _build_crash  # type: ignore[attr-defined]
    sys.modules["sevkit.stages.crash"] = module


@dataclass(frozen=True)
class Lab:
    """What the trials have in common: the plan and the folder that its local inputs are in."""

    folder: Path
    plan: Plan

    @classmethod
    def in_folder(cls, folder: Path, text: str = "") -> "Lab":
        """A lab whose inputs are in `folder`; another `text` gives other keys."""
        install_stage()
        if not (folder / "template").exists():
            (folder / "bench").mkdir(parents=True)
            sample_image(folder / "bench").rename(folder / "template")
        fetched = f"blob:{hashlib.sha256(_FETCHED).hexdigest()}"
        pin = Pin(fetched, "fetched", len(_FETCHED), {"kind": "url"})
        template = f"tree:{tree_digest(list_tree(folder / 'template'))}"

        def stage(name: str, **inputs: str) -> Stage:
            return Stage(name, "crash", 1, {"name": name, "text": text}, inputs)

        source = stage("source", fetched=pin.reference)
        tools = stage("tools", template=template)
        kernel = stage("kernel", source=source.reference, tools=tools.reference)
        image = stage("image", template=template, kernel=kernel.reference)
        plan = Plan(
            recipe=_Recipe(),  # type: ignore[arg-type]
            stages=(source, tools, kernel, image),
            pins={pin.reference: pin},
            local={template: Local(folder / "template")},
        )
        return cls(folder, plan)

    def build(self, place: Path, *, force: bool = False) -> None:
        """One build as `sevkit.project` does it, in the store and output folder of `place`."""
        store = Store(place / "store")
        settings = Settings(jobs=2, logs=place / "output" / ".log", force=force)
        work = find_work(self.plan, store, ["image"], force=force)
        Engine(self.plan, store, settings, lambda event: None, _fetch).run(work)
        image = output.image_dir(place / "output", self.plan)
        output.publish(result(self.plan, store, "image"), image)
        output.point_latest(image)

    def start(self, place: Path) -> int:
        """Build in a process of its own; its process id."""
        child = os.fork()
        if child:
            return child
        status = FAILED
        try:
            os.setsid()
            status = self._outcome(place)
            gc.collect()  # so that the store is let go of as at the end of any process
        finally:
            os._exit(status)

    def _outcome(self, place: Path) -> int:
        try:
            self.build(place)
        except FullDiskError:
            return FULL
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return FAILED
        return DONE


def _fetch(pin: Pin, path: Path, progress: Callable[[int, int | None, str], None]) -> None:
    with path.open("wb") as file:
        for start in range(0, len(_FETCHED), 20_000):
            file.write(_FETCHED[start : start + 20_000])
            file.flush()
            progress(start, len(_FETCHED), "")
            time.sleep(0.002)


def wait_for(child: int) -> int:
    """The exit status of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- what must be true -----------------------------------------------------------------------


def damage(place: Path) -> Iterator[str]:
    """Everything visible in the store and output folder of `place` that is not whole."""
    store = place / "store"
    for entry in store.glob("entries/*/*"):
        try:
            record = json.loads((entry / "key.json").read_bytes())
            rows = json.loads((entry / "content.json").read_bytes())
            if list_tree(entry / "data") != rows:
                yield f"{entry}: not as listed"
            key = Stage(
                "", record["kind"], record["version"], record["params"], record["inputs"]
            ).key
            if key != entry.name:
                yield f"{entry}: its record is not what the key says"
        except (OSError, ValueError, KeyError) as error:
            yield f"{entry}: {error!r}"
    for blob in store.glob("blobs/*/*"):
        if sha256_of(blob) != blob.name:
            yield f"{blob}: other bytes"
    for name in (place / "output").glob("[!.]*/[!.]*"):
        if name.is_symlink() and not name.exists():
            yield f"{name}: points nowhere"
        elif differences := verify(name):
            yield f"{name}: {differences}"


def remains(place: Path) -> Iterator[str]:
    """What a build has to remove that the one before left."""
    for pattern in ("store/tmp/*", "store/leases/*", "store/partial/*", "output/*/.draft-*"):
        yield from map(str, place.glob(pattern))


def processes_in(place: Path) -> list[str]:
    """Command lines of processes that work in `place`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            if bytes(place) in words and path.parent.name != str(os.getpid()):
                found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def leaked(place: Path) -> list[str]:
    """Those of `processes_in` that do not vanish."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while (found := processes_in(place)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


# --- trials ----------------------------------------------------------------------------------


@dataclass
class Score:
    """How many trials there were, at how many different points, and what went wrong in which."""

    tried: int = 0
    points: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Score") -> None:
        self.tried += other.tried
        self.points |= other.points
        self.failures += other.failures

    def as_json(self) -> str:
        return json.dumps(
            {"tried": self.tried, "points": sorted(self.points), "failures": self.failures}
        )


def _state(place: Path) -> str:
    """Roughly where a build had got to: what is there of its results and its unfinished work."""
    counts = [
        len(list(place.glob(pattern)))
        for pattern in ("store/blobs/*/*", "store/entries/*/*", "store/tmp/*/*", "output/*/*")
    ]
    return "/".join(map(str, counts))


def _next_build(lab: Lab, place: Path) -> Iterator[str]:
    status = wait_for(lab.start(place))
    if status != DONE:
        yield f"the next build: status {status}"
    yield from damage(place)
    yield from remains(place)
    latest = place / "output" / "made-up" / "latest"
    if latest.resolve() != output.image_dir(place / "output", lab.plan).resolve():
        yield "latest is not the image"


def kill_trials(lab: Lab, scratch: Path, count: int, seed: int) -> Score:
    """SIGKILL at random moments of a build, each in a store of its own."""
    chance, score = random.Random(seed), Score()
    durations = []
    for number in range(4):
        started = time.monotonic()
        assert wait_for(lab.start(scratch / f"measure-{number}")) == DONE
        durations.append(time.monotonic() - started)
    whole = sorted(durations)[1]
    while score.tried < count:
        place = scratch / "trial"
        child = lab.start(place)
        time.sleep(chance.uniform(0.0, whole))
        os.kill(child, signal.SIGKILL)
        if wait_for(child) == DONE:
            shutil.rmtree(place)
            continue  # it was faster: no kill
        score.tried += 1
        wrong = leaked(place)
        score.points.add(_state(place))
        wrong += damage(place)
        wrong += _next_build(lab, place)
        score.failures += [f"kill {score.tried}: {text}" for text in wrong]
        shutil.rmtree(place)
    return score


def full_disk_trials(lab: Lab, scratch: Path, count: int, seed: int) -> Score:
    """Builds on file systems too small by a random amount, which then become large enough."""
    chance, score = random.Random(seed), Score()
    place = scratch / "disk"
    place.mkdir()
    while score.tried < count:
        size = chance.randrange(16, 800) * 4096
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
        status = wait_for(lab.start(place))
        if status != DONE:
            score.tried += 1
            score.points.add(_state(place))
            wrong = leaked(place)
            if status != FULL:
                wrong.append(f"no clear error: status {status}")
            wrong += damage(place)
            subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
            wrong += _next_build(lab, place)
            score.failures += [f"{size} bytes: {text}" for text in wrong]
        subprocess.run(["umount", place], check=True)
    return score


def in_namespace(count: int, seed: int) -> "subprocess.Popen[str]":
    """Start `full_disk_trials` where an ordinary user may mount."""
    command = [sys.executable, str(Path(__file__)), "--full-disks", str(count), "--inside"]
    return subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", *command, "--seed", str(seed)],
        stdout=subprocess.PIPE,
        text=True,
    )


def score_of(process: "subprocess.Popen[str]") -> Score:
    """What trials in another process came to."""
    said, _ = process.communicate()
    assert process.returncode == 0, said
    found = json.loads(said.splitlines()[-1])
    return Score(found["tried"], set(found["points"]), found["failures"])


def run_part(kind: str, count: int, seed: int) -> Score:
    """Trials of one kind, in this process."""
    with tempfile.TemporaryDirectory(prefix="sevkit-crash-") as name:
        lab = Lab.in_folder(Path(name) / "lab")
        trials = {"kills": kill_trials, "full-disks": full_disk_trials}[kind]
        return trials(lab, Path(name), count, seed)


def start_kills(count: int, seed: int) -> "subprocess.Popen[str]":
    """Start `kill_trials` in another process."""
    command = [sys.executable, str(Path(__file__)), "--kills", str(count), "--inside"]
    return subprocess.Popen([*command, "--seed", str(seed)], stdout=subprocess.PIPE, text=True)


def main() -> int:
    """Run what the command line asks for; the figures on stdout."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--full-disks", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inside:
        kind = "kills" if chosen.kills else "full-disks"
        print(run_part(kind, chosen.kills or chosen.full_disks, chosen.seed).as_json())
        return 0
    scores = run_all(chosen.kills, chosen.full_disks, chosen.seed)
    for name, score in scores.items():
        print(f"{name}: survived {survived(score)} of {score.tried}, at {len(score.points)} states")
        print("\n".join(score.failures))
    return 1 if any(score.failures for score in scores.values()) else 0


def run_all(kills: int, full_disks: int, seed: int) -> dict[str, Score]:
    """Kills in two processes side by side, then full disks in two."""
    scores = {}
    for name, count, start in (
        ("SIGKILL", kills, start_kills),
        ("full disk", full_disks, in_namespace),
    ):
        halves = [count // 2, count - count // 2]
        running = [start(half, seed + index) for index, half in enumerate(halves) if half]
        scores[name] = Score()
        for process in running:
            scores[name].add(score_of(process))
    return scores


def survived(score: Score) -> int:
    """How many trials nothing went wrong in."""
    return score.tried - len({text.partition(":")[0] for text in score.failures})


if __name__ == "__main__":
    sys.exit(main())
