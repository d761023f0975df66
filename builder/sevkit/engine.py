# SPDX-License-Identifier: Apache-2.0
"""Runs a plan: finds out what is missing, fetches and builds it side by side, publishes results.

It knows nothing of kernels or files of other formats, prints nothing, and leaves nothing half
made: a stage's output reaches the store by one rename or not at all.
"""

import importlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from sevkit.disk import FullDiskError, full_disk_explained
from sevkit.errors import HostError, ImageError, SevkitError
from sevkit.events import Listener, Notice, Outcome, TaskFinished, TaskProgress, TaskStarted
from sevkit.sandbox import CancelledError, Processes, SandboxRunner, check_confinement, is_there
from sevkit.sources.pins import Pin, SourceGoneError
from sevkit.stage import BuildFunction, Plan, Stage, changes
from sevkit.store.store import Store, lock_name
from sevkit.toolchain import GROUP, tools_of

Fetch = Callable[[Pin, Path, Callable[[int, int | None, str], None]], None]
_WORKERS = 8
_PROGRESS_EVERY = 0.1
_OTHER_BYTES = {
    "replaced": "they replace those that were there",
    "kept": "another process uses those that were there, so they stay",
}


@dataclass(frozen=True)
class Settings:
    """How to build, as opposed to what: none of it may change a byte."""

    jobs: int
    logs: Path
    confined: bool = True
    force: bool = False
    keep_going: bool = False


@dataclass(frozen=True)
class Task:
    """A stage to build or a file to fetch, and the names of the tasks that come first."""

    name: str
    reason: str
    after: frozenset[str]
    stage: Stage | None = None
    pin: Pin | None = None


@dataclass
class Work:
    """What is to be done for some targets, and what is there already."""

    tasks: dict[str, Task] = field(default_factory=dict)
    cached: list[Stage] = field(default_factory=list)


def find_work(plan: Plan, store: Store, targets: Sequence[str], *, force: bool = False) -> Work:
    """The tasks without which the results of `targets` would not be in the store."""
    work = Work()
    stages = {stage.reference: stage for stage in plan.stages}
    seen: set[str] = set()

    def visit(stage: Stage) -> None:
        if stage.name in seen:
            return
        seen.add(stage.name)
        if store.has(stage.key) and not force:
            work.cached.append(stage)
            return
        after = set()
        for reference in stage.inputs.values():
            if reference in stages:
                visit(stages[reference])
                after.add(stages[reference].name)
            elif reference in plan.pins:
                after.add(_add_fetch(work, plan, store, plan.pins[reference]))
        work.tasks[stage.name] = Task(
            stage.name,
            reason_to_build(plan, store, stage, force=force),
            frozenset(after & work.tasks.keys()),
            stage=stage,
        )

    for name in targets:
        visit(plan.stage(name))
    return work


def find_fetches(plan: Plan, store: Store) -> Work:
    """The tasks that bring every source of the plan into the store."""
    work = Work()
    for pin in plan.pins.values():
        _add_fetch(work, plan, store, pin)
    return work


def _add_fetch(work: Work, plan: Plan, store: Store, pin: Pin) -> str:
    """Have `pin` fetched unless it is there; the name of that task."""
    name = f"fetch {pin.name}"
    if any(other.name == pin.name and other != pin for other in plan.pins.values()):
        name += f" ({pin.reference.partition(':')[2][:12]})"
    if not store.has_blob(pin.reference):
        work.tasks[name] = Task(name, "not in the store", frozenset(), pin=pin)
    return name


def reason_to_build(plan: Plan, store: Store, stage: Stage, *, force: bool = False) -> str:
    """Why `stage` is not up to date, in one line."""
    if store.has(stage.key):
        return "asked for" if force else "up to date"
    differences = why_stale(plan, store, stage)
    if differences is None:
        return "never built"
    return "; ".join(differences[:3]) + (" …" if len(differences) > 3 else "")


def why_stale(plan: Plan, store: Store, stage: Stage) -> list[str] | None:
    """What differs from the stage of this name that was built last; None if none was."""
    last_key = store.last_key(plan.recipe.name, stage.name)
    if last_key is None or not store.has(last_key):
        return None
    record = store.record(last_key)
    if record is None:
        return None
    names = {other.reference: other.name for other in plan.stages}

    def in_words(value: str) -> str:
        kind, _, digest = value.partition(":")
        if kind in ("blob", "tree", "git", "stage") and len(digest) >= 40:
            return names.get(value, f"{kind} {digest[:12]}")
        return value

    return changes(record, stage.record(), in_words)


def result(plan: Plan, store: Store, name: str) -> Path:
    """The output folder of the stage `name`, after every byte of it was hashed.

    Raises `ImageError` where that finds damage; then all that is damaged of the plan is removed.
    """
    try:
        return store.open(plan.stage(name).key)
    except ImageError:
        _remove_damaged(plan, store)
        raise


def _remove_damaged(plan: Plan, store: Store) -> None:
    stages = [stage.reference for stage in plan.stages]
    store.remove_damaged([*stages, *plan.pins, *plan.local])


class Engine:
    """Runs the tasks of one build. Use once."""

    def __init__(
        self, plan: Plan, store: Store, settings: Settings, listener: Listener, fetch: Fetch
    ):
        self._plan = plan
        self._store = store
        self._settings = settings
        self._listener = listener
        self._fetch = fetch
        self._processes = Processes()
        self._built_here: set[str] = set()

    def run(self, work: Work) -> None:
        """Do all of `work`.

        Raises the error of the task that failed, or one for several: `SourceGoneError` where all
        of them are that. With `keep_going` after everything that does not depend on them was done.
        Raises `CancelledError` when interrupted.
        """
        self._store.sweep()
        if not work.tasks:
            return
        self._check_host(work)
        with full_disk_explained(self._store.root, self._settings.logs):
            self._settings.logs.mkdir(parents=True, exist_ok=True)
            for reference, local in self._plan.local.items():
                self._store.add_local(local, reference)
        for stage in work.cached:
            self._listener(TaskFinished(stage.name, "cached", 0))
        errors = self._run_tasks(dict(work.tasks))
        if any(isinstance(error, ImageError) for error in errors):
            _remove_damaged(self._plan, self._store)
        full = next((error for error in errors if isinstance(error, FullDiskError)), None)
        if errors:
            raise full or _as_one(errors)

    def cancel(self) -> None:
        """Stop the build from another thread: `run` raises `CancelledError` soon."""
        self._processes.cancel()

    def _run_tasks(self, waiting: dict[str, Task]) -> list[SevkitError]:
        errors: list[SevkitError] = []
        running: dict[Future[None], Task] = {}
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="task") as pool:
            try:
                while waiting or running:
                    unfinished = waiting.keys() | {task.name for task in running.values()}
                    for task in [t for t in waiting.values() if not t.after & unfinished]:
                        del waiting[task.name]
                        running[pool.submit(self._do, task)] = task
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        task = running.pop(future)
                        error = future.exception()
                        if error is None:
                            continue
                        if not isinstance(error, SevkitError):
                            raise error
                        errors.append(error)
                        self._skip_dependants(task.name, waiting)
                        if not self._settings.keep_going:
                            self._processes.cancel()
                            waiting.clear()
            except BaseException as error:
                self._processes.cancel()
                if isinstance(error, KeyboardInterrupt):
                    raise CancelledError("interrupted") from None
                raise
        causes = [error for error in errors if not isinstance(error, CancelledError)]
        return causes or errors

    def _skip_dependants(self, name: str, waiting: dict[str, Task]) -> None:
        for task in [task for task in waiting.values() if name in task.after]:
            if waiting.pop(task.name, None) is not None:
                self._listener(TaskFinished(task.name, "skipped", 0))
                self._skip_dependants(task.name, waiting)

    def _check_host(self, work: Work) -> None:
        tools: dict[str, str] = {}
        for task in work.tasks.values():
            if task.stage is not None and GROUP not in task.stage.inputs:
                tools |= tools_of(task.stage.kind)
        missing = {tool: package for tool, package in tools.items() if not is_there(tool)}
        if self._settings.confined and any(task.stage for task in work.tasks.values()):
            if is_there("bwrap"):
                check_confinement()
            else:
                missing["bwrap"] = "bubblewrap"
        if missing:
            packages = " ".join(sorted(set(missing.values())))
            lines = [f"{tool} (package {missing[tool]})" for tool in sorted(missing)]
            raise HostError(
                "this host lacks what the build needs",
                why="\n".join(lines),
                hint=f"apt-get install {packages}",
            )

    def _do(self, task: Task) -> None:
        self._processes.check()
        started = time.monotonic()
        log = None
        outcome: Outcome = "failed"
        self._listener(TaskStarted(task.name, task.reason))
        try:
            with full_disk_explained(self._store.root, self._settings.logs):
                if task.pin is not None:
                    self._do_fetch(task.name, task.pin)
                    outcome = "fetched"
                elif task.stage is not None:
                    log = self._settings.logs / f"{task.name}-{task.stage.key[:12]}.log"
                    outcome = self._do_stage(task.stage, log)
        finally:
            self._listener(TaskFinished(task.name, outcome, time.monotonic() - started, log))

    def _do_fetch(self, name: str, pin: Pin) -> None:
        with self._store.lock(lock_name(pin.reference), self._waiting(name)):
            if self._store.has_blob(pin.reference):
                return
            partial = self._store.partial(pin.reference)
            self._fetch(pin, partial, self._progress(name, "B"))
            self._store.add_blob(partial, pin.reference)

    def _do_stage(self, stage: Stage, log: Path) -> Outcome:
        with self._store.lock(stage.key, self._waiting(stage.name)):
            is_wanted_anew = self._settings.force and stage.key not in self._built_here
            if self._store.has(stage.key) and not is_wanted_anew:
                return "cached"
            with self._store.scratch() as scratch:
                (scratch / "work").mkdir()
                (scratch / "out").mkdir()
                log.write_text("")
                inputs = {
                    role: self._input(reference, scratch / f"in-{number}")
                    for number, (role, reference) in enumerate(sorted(stage.inputs.items()))
                }
                toolchain = inputs.pop(GROUP, None)
                runner = SandboxRunner(
                    title=stage.name,
                    work=scratch / "work",
                    inputs=inputs,
                    log=log,
                    jobs=self._settings.jobs,
                    confined=self._settings.confined,
                    processes=self._processes,
                    on_progress=self._progress(stage.name, ""),
                    leftovers=None if self._settings.force else self._store.leftovers(stage.kind),
                    root=None if toolchain is None else toolchain / "root",
                )
                with full_disk_explained(self._store.root, self._settings.logs):
                    _build_function(stage)(stage, inputs, scratch / "out", runner)
                self._processes.check()
                published = self._store.publish(stage, scratch / "out")
            self._built_here.add(stage.key)
        if published != "taken":
            self._listener(
                Notice(f"{stage.name}: the same inputs gave other bytes; {_OTHER_BYTES[published]}")
            )
        self._store.remember_last(self._plan.recipe.name, stage)
        return "built"

    def _input(self, reference: str, place: Path) -> Path:
        kind, _, digest = reference.partition(":")
        if kind == "stage":
            return self._store.open(digest, checked=digest in self._built_here)
        if kind == "tree":
            self._store.lay_out(reference, place)
            return place
        pin = self._plan.pins.get(reference)
        if pin is not None and not self._store.has_blob(reference):
            raise ImageError(f"{pin.name} is not in the store", why=reference, hint="build again")
        return self._store.blob(reference)

    def _waiting(self, name: str) -> Callable[[], None]:
        told = False

        def wait_a_little() -> None:
            nonlocal told
            self._processes.check()
            if not told:
                told = True
                self._listener(Notice(f"{name}: another build is at it; waiting for its result"))

        return wait_a_little

    def _progress(self, task: str, unit: str) -> Callable[[int, int | None, str], None]:
        last = 0.0

        def report(done: int, total: int | None, note: str = "") -> None:
            nonlocal last
            self._processes.check()
            now = time.monotonic()
            if now - last >= _PROGRESS_EVERY or done == total:
                last = now
                self._listener(TaskProgress(task, done, total, unit, note))

        return report


def _as_one(errors: Sequence[SevkitError]) -> SevkitError:
    gone = [error for error in errors if isinstance(error, SourceGoneError)]
    if len(gone) == len(errors):
        return SourceGoneError(*sorted(name for error in gone for name in error.names))
    return SevkitError.of_several(errors, f"{len(errors)} tasks failed")


def _build_function(stage: Stage) -> BuildFunction:
    module = importlib.import_module(f"sevkit.stages.{stage.kind}")
    function: BuildFunction = getattr(module, f"build_{stage.kind}")
    return function
