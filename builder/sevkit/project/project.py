# SPDX-License-Identifier: Apache-2.0
"""One person's work on one folder: its recipes, its store, its output, and builds of them.

Ties the steps together, recipe → pins → plan → engine → image directory, and owns the one loop
among them: a remembered package that has left the mirror is looked up anew, once.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

from sevkit.disk import full_disk_explained
from sevkit.engine import Engine, Settings, Work, find_fetches, find_work, result
from sevkit.errors import RecipeError, SourceError
from sevkit.events import Listener, Notice
from sevkit.image.output import image_dir, point_latest, publish
from sevkit.kconfig import version_of
from sevkit.plan import (
    Pins,
    kconfig_requests,
    kernel_config,
    make_kconfig_plan,
    make_plan,
    places_of,
    requests,
    unasked,
)
from sevkit.project.command_line import command_line
from sevkit.project.kernel_questions import KernelQuestions
from sevkit.project.lock import Choice, DamagedLockError, Lock, changes_of, config_key, read_lock
from sevkit.project.vendor import without_vendored
from sevkit.recipe.file import files_of, load
from sevkit.recipe.library import Library
from sevkit.recipe.model import DebSource, DebSourcePackage, Recipe
from sevkit.sandbox import Processes, SandboxRunner, check_confinement
from sevkit.sources import (
    Apt,
    NoSuiteError,
    Pin,
    PinMemory,
    Request,
    SourceGoneError,
    fetch,
    resolve,
    self_pinned,
)
from sevkit.sources.pins import Progress
from sevkit.stage import Plan, Stage
from sevkit.store.store import Store
from sevkit.toolchain import GROUP, HOST, Toolchain, toolchain

T = TypeVar("T")

Requests = Mapping[str, Request]

Known = Callable[[str, Request], Sequence[Pin] | None]
"""Says what a request, under its name, resolves to; None where it does not know."""


@dataclass
class Project:
    """A folder with recipes, and where its results go.

    The store in `store_root` is made or opened by the first thing that needs it.
    `locked`: what the lock of a recipe has not is refused. `offline`: nothing is looked up and
    nothing fetched.
    """

    folder: Path
    output: Path
    store_root: Path
    listener: Listener
    toolchain: Toolchain = HOST
    locked: bool = False
    offline: bool = False
    library: Library = field(init=False)

    def __post_init__(self) -> None:
        self.library = Library.of(self.folder)
        self.memory = PinMemory(self.store_root / "pins")
        self._asked: dict[str, Sequence[str]] = {}

    @cached_property
    def store(self) -> Store:
        """What was fetched and built. Raises `HostError` where it can't be used."""
        return Store(self.store_root)

    @cached_property
    def apt(self) -> Apt:
        """The way to Debian's packages."""
        return Apt(self.store.personal("apt"))

    def recipe(self, name: str, overrides: Mapping[str, str]) -> Recipe:
        """The recipe called `name`, or in the file `name`, with its variables set."""
        recipe = load(name, overrides, self.library)
        self._asked[recipe.name] = [name, *(f"{key}={value}" for key, value in overrides.items())]
        return recipe

    def files(self, recipe: Recipe) -> Sequence[Path]:
        """The file that `recipe` was read from, the one that it extends, and so on."""
        name, *_ = self._asked.get(recipe.name, [recipe.name])
        return files_of(name, self.library)

    def command(self, verb: str, recipe: Recipe, *flags: str) -> str:
        """The command line that does `verb` for `recipe` as it was asked for, with these tools.

        To be pasted where the user stands.
        """
        words = [*self._asked.get(recipe.name, [recipe.name]), *flags, *self.toolchain.flags]
        return command_line(self.folder, None, verb, *words)

    def pins(self, recipe: Recipe) -> Pins:
        """What the sources of `recipe` resolve to: pinned by it, locked, remembered, looked up.

        What was looked up is remembered; nothing is when the project must be `locked`. Raises
        `RecipeError` then for what is not in the lock, and `SourceError` for what would have to be
        looked up `offline`.
        """
        return self._pins(recipe, requests(recipe, self.toolchain))

    def _pins(self, recipe: Recipe, wanted: Requests) -> Pins:
        stated = partial(self.stated_pins, self.lock(recipe))
        return self._resolved(recipe, wanted, stated, self._recalled)

    def _resolved(self, recipe: Recipe, wanted: Requests, *known: Known) -> Pins:
        """What each of `wanted` is by the first of `known` that says it, else looked up.

        What was looked up takes the place of what is remembered once all of it was found: after a
        failure a build offline still goes on from there.
        """
        found: dict[str, Sequence[Pin]] = {}
        looked_up: list[tuple[Request, Sequence[Pin]]] = []
        for name, request in wanted.items():
            answers = (ask(name, request) for ask in known)
            pins = next((pins for pins in answers if pins is not None), None)
            if pins is None:
                pins = self._look_up(recipe, name, request)
                looked_up.append((request, pins))
            found[name] = pins
        for request, pins in looked_up:
            self.memory.remember(request, pins)
        return found

    def _recalled(self, _name: str, request: Request) -> Sequence[Pin] | None:
        return self.memory.recall(request)

    def stated_pins(self, lock: Lock | None, name: str, request: Request) -> Sequence[Pin] | None:
        """What `request` resolves to by its own words, else by the lock; None otherwise.

        Raises `RecipeError` for what is not in the lock, where the project must be `locked`.
        """
        locked = lock.pins(request) if lock is not None else None
        if lock is not None and locked is None:
            if self.locked:
                raise lock.refusal(name, request)
            self.listener(Notice(f"{name} is not in {lock.path.name}"))
        own = self_pinned(request)
        return locked if own is None else own

    def _look_up(self, recipe: Recipe, name: str, request: Request) -> Sequence[Pin]:
        if self.offline:
            raise SourceError(
                f"{recipe.name}: {name} was never looked up, and the build is offline",
                hint=self.command("fetch", recipe),
            )
        self.listener(Notice(f"looking up {name}"))
        try:
            return resolve(request, self.apt)
        except SourceError as error:
            packages, suite = places_of(recipe, name, request)
            if isinstance(error, NoSuiteError) and suite is not None:
                raise RecipeError(error.what, why=error.why, hint=f"mend {suite}") from error
            what = f"{packages}: {error.what}"
            raise SourceError(what, why=error.why, hint=error.hint) from error

    def lock(self, recipe: Recipe) -> Lock | None:
        """The lock of `recipe`; None without one. Raises `RecipeError` where there must be one."""
        path = self.folder / "recipes" / f"{recipe.name}.lock"
        self.library.observe([path])
        mend = self.command("lock", recipe)
        lock = read_lock(path, recipe.name, mend)
        if lock is None and self.locked:
            raise RecipeError(f"there is no {path}", hint=mend)
        return lock

    def locked_config(self, lock: Lock | None, stage: Stage) -> Path | None:
        """The configuration that is locked for the kernel `stage`.

        Raises `RecipeError` where there must be one and is none.
        """
        if lock is None:
            return None
        path = lock.config(config_key(stage))
        if path is not None:
            self.library.observe([path])
        elif self.locked and not lock.configs:
            raise RecipeError(f"{lock.path} locks no kernel configuration", hint=lock.mend)
        elif self.locked:
            raise RecipeError(
                f"{lock.path}: the kernel configuration is locked for something else",
                why="the source, patches, fragments or compiler are others than they were",
                hint=lock.mend,
            )
        elif lock.configs:
            self.listener(Notice(f"{lock.path.name} locks another kernel configuration"))
        return path

    def write_lock(self, recipe: Recipe, settings: Settings, *, update: bool) -> list[str]:
        """Lock all that `recipe` asks for, and its kernel configuration; what changed, a line each.

        What is locked already stays, unless `update`: then everything is looked up anew, and a lock
        that is damaged is written anew too. Raises `RecipeError` for one otherwise.
        """
        wanted = requests(recipe, self.toolchain)
        write = partial(self._write_lock, recipe, settings, update=update)
        return self._with_newer(recipe, wanted, write)

    def _write_lock(self, recipe: Recipe, settings: Settings, *, update: bool) -> list[str]:
        old = self._lock_to_change(recipe, update=update)
        wanted = requests(recipe, self.toolchain)
        known = () if update else (partial(_locked, old), self._recalled)
        pins = self._resolved(recipe, wanted, _own, *known)
        lock = old
        for name, request in wanted.items():
            lock = lock.with_pins(name, request, pins[name])
        plan = make_plan(recipe, self.library, pins, self.toolchain)
        questions_plan = make_kconfig_plan(recipe, self.library, pins, self.toolchain)
        self._make_ready(questions_plan, settings)
        with self._questions(recipe, questions_plan, settings) as questions:
            questions.check()
            config = questions.config.read_bytes()
            series = ".".join(version_of(questions.tree).split(".")[:2])
        key = config_key(plan.stage("kernel"))
        lock = lock.with_config(key, series, config, Choice(self.toolchain.name, recipe.vars))
        lock = self._asked_for(recipe, lock)
        lock.write({lock.configs[key].file: config})
        old.remove_configs(lock)
        return changes_of(old, lock)

    def _asked_for(self, recipe: Recipe, lock: Lock) -> Lock:
        """`lock` without what `recipe` asks for in none of the choices that it is locked for."""
        name, *_ = self._asked.get(recipe.name, [recipe.name])
        wanted = [*requests(recipe, self.toolchain).values()]
        for choice in lock.choices():
            values = {key: text for key, text in choice.variables.items() if key in recipe.vars}
            try:
                tools = toolchain(choice.toolchain, HOST.sandbox)
                wanted += requests(load(name, values, self.library), tools).values()
            except RecipeError as error:
                said = " ".join(f"{key}={text}" for key, text in values.items())
                what = f"{lock.path.name} keeps all that it has: the recipe can't be read with"
                self.listener(Notice(f"{what} {said}: {error.what}"))
                return lock
        return lock.only(wanted)

    def whole_lock(self, recipe: Recipe) -> Lock:
        """A lock of just what `recipe` asks for now, whether all of it was locked or not."""
        path = self.folder / "recipes" / f"{recipe.name}.lock"
        kept = self.lock(recipe)
        lock = Lock(path, recipe.name, configs=kept.configs if kept is not None else {})
        pins = self.pins(recipe)
        for name, request in requests(recipe, self.toolchain).items():
            lock = lock.with_pins(name, request, pins[name])
        return lock

    def _lock_to_change(self, recipe: Recipe, *, update: bool) -> Lock:
        """The lock, an empty one where there is none or, with `update`, only a damaged one."""
        lock = None
        try:
            lock = self.lock(recipe)
        except DamagedLockError as error:
            if not update:
                raise
            self.listener(Notice(f"{error.what}: it is written anew"))
        return lock or Lock(self.folder / "recipes" / f"{recipe.name}.lock", recipe.name)

    def update(self, recipe: Recipe) -> list[str]:
        """Look up the sources of `recipe` again; what changed, a line each, if anything did.

        Raises `RecipeError` for a recipe with a lock, which would go on to hold.
        """
        if (lock := self.lock(recipe)) is not None:
            raise RecipeError(
                f"{recipe.name} is locked by {lock.path}",
                hint=self.command("lock", recipe, "--update"),
            )
        before = {pin.name: name for name, pins in self.pins(recipe).items() for pin in pins}
        anew = self._resolved(recipe, requests(recipe, self.toolchain), _own)
        after = {pin.name: name for name, pins in anew.items() for pin in pins}
        lines = [f"{before[name]}: {name} is out" for name in sorted(before.keys() - after.keys())]
        lines += [f"{after[name]}: {name} is in" for name in sorted(after.keys() - before.keys())]
        return lines

    def plan(self, recipe: Recipe) -> Plan:
        """The plan of the image."""
        pins, lock = self.pins(recipe), self.lock(recipe)
        return make_plan(
            recipe, self.library, pins, self.toolchain, partial(self.locked_config, lock)
        )

    def plan_without_asking(self, recipe: Recipe) -> tuple[Plan, Pins]:
        """The plan by what recipe and lock say of the sources, and the pins that they say.

        Stand-ins are planned with for the others: nothing is looked up, and what was earlier does
        not count. Raises `RecipeError` for what is not locked, where the project must be.
        """
        lock = self.lock(recipe)
        stated: dict[str, Sequence[Pin]] = {}
        stand_ins: dict[str, Sequence[Pin]] = {}
        for name, request in requests(recipe, self.toolchain).items():
            pins = self.stated_pins(lock, name, request)
            if pins is None:
                stand_ins[name] = unasked(name, request)
            else:
                stated[name] = pins
        locked_config = partial(self.locked_config, lock)
        pins_of_all = {**stated, **stand_ins}
        return make_plan(recipe, self.library, pins_of_all, self.toolchain, locked_config), stated

    def kconfig_plan(self, recipe: Recipe) -> Plan:
        """The plan of the small tree that answers questions about the kernel configuration."""
        pins = self._pins(recipe, kconfig_requests(recipe, self.toolchain))
        return make_kconfig_plan(recipe, self.library, pins, self.toolchain)

    def build(self, recipe: Recipe, targets: Sequence[str], settings: Settings) -> "Built":
        """Build `targets` of `recipe`; for the target ``image`` also publish it in `output`.

        A package that was looked up earlier and has left the mirror is looked up anew, once.
        """
        with full_disk_explained(self.store_root, self.output):
            wanted = requests(recipe, self.toolchain)
            return self._with_newer(recipe, wanted, partial(self._build, recipe, targets, settings))

    def _build(self, recipe: Recipe, targets: Sequence[str], settings: Settings) -> "Built":
        plan = self.plan(recipe)
        self._keep(plan)
        image = image_dir(self.output, plan) if "image" in targets else None
        if image is not None and (image / "manifest.json").is_file() and not settings.force:
            self.store.sweep()
            point_latest(image)
            return Built(plan, image, idle=True, files=_files_of(image))
        work = self.run(plan, find_work(plan, self.store, targets, force=settings.force), settings)
        if image is None:
            places = [result(plan, self.store, name) for name in targets]
            return Built(plan, places[0], idle=not work.tasks, files=[str(p) for p in places])
        publish(result(plan, self.store, "image"), image)
        point_latest(image)
        return Built(plan, image, idle=False, files=_files_of(image))

    def _keep(self, plan: Plan) -> None:
        """Have the store know that all of `plan` that is there is in use, needed today or not."""
        for stage in plan.stages:
            self.store.has(stage.key)
        for reference in plan.pins:
            self.store.has_blob(reference)

    def _with_newer(self, recipe: Recipe, wanted: Requests, work: Callable[[], T]) -> T:
        """Do `work`, and once more with newer versions of all `wanted` where some are no more."""
        try:
            return work()
        except SourceGoneError as gone:
            self._refuse_moved(recipe, gone)
            self.listener(Notice(f"{gone.what}; looking for what replaced it"))
            lock = self.lock(recipe)
            locked = [partial(_locked, lock)] if lock is not None else []
            self._resolved(recipe, wanted, _own, *locked)
            return work()

    def _refuse_moved(self, recipe: Recipe, gone: SourceGoneError) -> None:
        """Raise `SourceError` for locked packages that have left the mirror: what is there now."""
        lock = self.lock(recipe)
        locked = {name for name in gone.names if lock is not None and lock.holds(name)}
        if lock is None or not locked:
            return
        newer: list[str] = []
        own_versions: list[str] = []
        flags: list[str] = []
        for source, request in requests(recipe, self.toolchain).items():
            names = locked & {pin.name for pin in lock.pins(request) or ()}
            if not names:
                continue
            wanted = request
            if isinstance(request, DebSource | DebSourcePackage) and request.version is not None:
                own_versions.append(f"sources.{source}.version")
                wanted = request.model_copy(update={"version": None})
            else:
                flags = ["--update"]
            with contextlib.suppress(SourceError):
                newer += _of_same_packages(names, resolve(wanted, self.apt))
        if locked <= set(newer):  # which its lists still promise
            raise gone
        mend = self.command("lock", recipe, *flags)
        if own_versions:
            mend = f"mend {' and '.join(own_versions)} of {recipe.name}, then {mend}"
        has = "is locked and has" if len(locked) == 1 else "are locked and have"
        raise SourceError(
            f"{', '.join(sorted(locked))} {has} left the mirror",
            why=f"there is {', '.join(sorted(set(newer)))}" if newer else "",
            hint=mend,
        ) from gone

    def fetch(self, recipe: Recipe, settings: Settings) -> int:
        """Bring every source of `recipe` into the store; the number that was missing."""

        def bring() -> int:
            plan = self.plan(recipe)
            return len(self.run(plan, find_fetches(plan, self.store), settings).tasks)

        with full_disk_explained(self.store_root, self.output):
            return self._with_newer(recipe, requests(recipe, self.toolchain), bring)

    def run(self, plan: Plan, work: Work, settings: Settings) -> Work:
        """Do `work` and return it; files of a vendored folder are not fetched again."""
        work = without_vendored(plan, work, self.folder, self.store)
        bring = partial(fetch, apt=self.apt)
        if self.offline:
            bring = partial(_refuse_to_fetch, hint=self.command("fetch", plan.recipe))
        Engine(plan, self.store, settings, self.listener, bring).run(work)
        return work

    @contextlib.contextmanager
    def kernel_questions(self, recipe: Recipe, settings: Settings) -> Iterator[KernelQuestions]:
        """The recipe's kernel configuration, to be asked about."""

        def ready() -> Plan:
            plan = self.kconfig_plan(recipe)
            self._make_ready(plan, settings)
            return plan

        plan = self._with_newer(recipe, kconfig_requests(recipe, self.toolchain), ready)
        with self._questions(recipe, plan, settings) as questions:
            yield questions

    def _make_ready(self, plan: Plan, settings: Settings) -> None:
        """Build the small tree that is the last stage of `plan`."""
        if settings.confined:
            check_confinement()
        self.run(plan, find_work(plan, self.store, [plan.stages[-1].name]), settings)

    @contextlib.contextmanager
    def _questions(
        self, recipe: Recipe, plan: Plan, settings: Settings
    ) -> Iterator[KernelQuestions]:
        stage = plan.stages[-1]
        tree = self.store.open(stage.key)
        params, fragments = kernel_config(recipe, self.library)
        settings.logs.mkdir(parents=True, exist_ok=True)
        with self.store.scratch() as scratch:
            runner = SandboxRunner(
                title="kconfig",
                work=scratch,
                inputs={"tree": tree, **fragments},
                log=settings.logs / "kconfig.log",
                jobs=settings.jobs,
                confined=settings.confined,
                processes=Processes(),
                on_progress=lambda done, total, note: None,
                root=self._toolchain_root(stage),
            )
            yield KernelQuestions.of(tree, fragments, params, runner)

    def _toolchain_root(self, stage: Stage) -> Path | None:
        if GROUP not in stage.inputs:
            return None
        return self.store.open(stage.inputs[GROUP].partition(":")[2]) / "root"

    def observed(self) -> list[str]:
        """Every path that the plans made so far rest on, those that were not there included."""
        return [*map(str, self.library.observed), *map(str, self.memory.observed)]


def _own(_name: str, request: Request) -> Sequence[Pin] | None:
    return self_pinned(request)


def _locked(lock: Lock, _name: str, request: Request) -> Sequence[Pin] | None:
    return lock.pins(request)


def _of_same_packages(names: Collection[str], pins: Sequence[Pin]) -> Sequence[str]:
    """The files of `pins` that are of packages which the files called `names` are of."""
    packages = {name.partition("_")[0] for name in names}
    return [pin.name for pin in pins if pin.name.partition("_")[0] in packages]


def _refuse_to_fetch(pin: Pin, _destination: Path, _progress: Progress, hint: str) -> None:
    raise SourceError(f"{pin.name} is not in the store, and the build is offline", hint=hint)


@dataclass(frozen=True)
class Built:
    """What a build gave: an image directory or, for a single stage, its place in the store."""

    plan: Plan
    result: Path
    idle: bool
    files: Sequence[str]

    def remarks(self) -> list[str]:
        """What a user should know about the image, from its manifest; nothing for a stage."""
        from sevkit.image.manifest import load as load_manifest

        if not (self.result / "manifest.json").is_file():
            return []
        return load_manifest(self.result).remarks()


def _files_of(image: Path) -> list[str]:
    return [str(image.parent / "latest"), str(image), *(str(path) for path in image.iterdir())]
