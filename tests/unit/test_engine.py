# SPDX-License-Identifier: Apache-2.0
"""The engine, driven by a made-up kind of stage through the real store and sandbox."""

import secrets
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sevkit.canonical import sha256_of
from sevkit.engine import Engine, Settings, Task, Work, find_fetches, find_work, why_stale
from sevkit.errors import BuildError, HostError, ImageError, SevkitError, SourceError
from sevkit.events import Event, Notice, TaskFinished, TaskStarted
from sevkit.sandbox import CancelledError
from sevkit.sources import Pin, SourceGoneError
from sevkit.stage import Plan, Runner, Stage
from sevkit.store.store import Store

Build = Callable[[Stage, Mapping[str, Path], Path, Runner], None]


class Recipe:
    name = "made-up"


def concatenate(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """The result is the stage's text and its inputs' contents."""
    parts = [str(stage.params["text"])]
    for _, path in sorted(inputs.items()):
        parts.append((path / "text" if path.is_dir() else path).read_text())
    (out / "text").write_text("+".join(parts))


def draw(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
    """The result is another one each time."""
    (out / "text").write_text(secrets.token_hex())


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("sevkit.stages.synthetic")
    module.build_synthetic = concatenate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sevkit.stages.synthetic", module)
    return module


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def a_stage(name: str, text: str = "", **inputs: str) -> Stage:
    return Stage(name, "synthetic", 1, {"text": text or name}, inputs)


def a_plan(*stages: Stage, pins: Sequence[Pin] = ()) -> Plan:
    return Plan(
        recipe=Recipe(),  # type: ignore[arg-type]
        stages=stages,
        pins={pin.reference: pin for pin in pins},
        local={},
    )


def run(
    plan: Plan,
    store: Store,
    tmp_path: Path,
    *,
    targets: Sequence[str] | None = None,
    fetch: Callable[..., None] | None = None,
    **settings: bool,
) -> list[Event]:
    events: list[Event] = []
    chosen = Settings(jobs=2, logs=tmp_path / "logs", **settings)  # type: ignore[arg-type]
    names = targets or [plan.stages[-1].name]
    work = find_work(plan, store, names, force=chosen.force)
    Engine(plan, store, chosen, events.append, fetch or no_fetch).run(work)
    return events


def no_fetch(pin: Pin, path: Path, progress: object) -> None:
    raise AssertionError(f"{pin.name} was fetched")


def outcomes(events: list[Event]) -> dict[str, str]:
    return {event.task: event.outcome for event in events if isinstance(event, TaskFinished)}


def chain() -> Plan:
    first = a_stage("first")
    second = a_stage("second", a=first.reference)
    third = a_stage("third", a=second.reference, b=first.reference)
    return a_plan(first, second, third)


def test_stages_are_built_in_order_and_once(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    plan = chain()
    assert set(outcomes(run(plan, store, tmp_path)).values()) == {"built"}
    text = (store.open(plan.stage("third").key) / "text").read_text()
    assert text == "third+second+first+first"
    assert run(plan, store, tmp_path) == []


def test_only_what_a_target_needs_is_built(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    events = run(chain(), store, tmp_path, targets=["second"])
    assert outcomes(events) == {"first": "built", "second": "built"}


def test_after_a_change_only_what_depends_on_it_is_built_and_the_reason_is_told(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    run(chain(), store, tmp_path)
    first = a_stage("first")
    second = a_stage("second", text="changed", a=first.reference)
    third = a_stage("third", a=second.reference, b=first.reference)
    plan = a_plan(first, second, third)
    assert why_stale(plan, store, second) == ["params.text: second → changed"]
    events = run(plan, store, tmp_path)
    assert outcomes(events) == {"first": "cached", "second": "built", "third": "built"}
    reasons = {event.task: event.reason for event in events if isinstance(event, TaskStarted)}
    assert reasons["second"] == "params.text: second → changed"
    assert "second" in reasons["third"]


def test_force_builds_what_is_there_already(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    run(chain(), store, tmp_path)
    events = run(chain(), store, tmp_path, force=True)
    assert set(outcomes(events).values()) == {"built"}


def test_a_stage_that_comes_out_otherwise_spares_what_another_build_uses_and_says_so(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    kind.build_synthetic = draw  # type: ignore[attr-defined]
    plan = a_plan(a_stage("drawn"))

    def anew() -> str:
        events = run(plan, store, tmp_path, force=True)
        return next((event.text for event in events if isinstance(event, Notice)), "")

    assert anew() == ""
    assert anew().startswith("drawn: the same inputs gave other bytes; they replace")
    another_build = Store(store.root)
    used = another_build.open(plan.stage("drawn").key) / "text"
    before = used.read_text()
    assert anew().startswith("drawn: the same inputs gave other bytes; another process uses those")
    assert used.read_text() == before


def test_force_brings_together_again_what_damage_has_parted(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    def copy(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
        (concatenate if inputs else draw)(stage, inputs, out, run)

    kind.build_synthetic = copy  # type: ignore[attr-defined]
    drawn = a_stage("drawn")
    plan = a_plan(drawn, a_stage("copy", a=drawn.reference))

    def are_together() -> bool:
        texts = [(store.open(stage.key) / "text").read_text() for stage in plan.stages]
        return texts[1] == f"copy+{texts[0]}"

    run(plan, store, tmp_path)
    assert are_together()
    (store.open(drawn.key) / "text").write_text("harmed")
    run(plan, store, tmp_path, targets=["drawn"], force=True)
    assert not are_together()
    run(plan, store, tmp_path, force=True)
    assert are_together()


def test_equal_work_under_two_names_is_done_once_by_force_too(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    one, twin = a_stage("one", text="same"), a_stage("twin", text="same")
    last = a_stage("last", a=one.reference)
    work = Work({stage.name: Task(stage.name, "", frozenset(), stage) for stage in (one, twin)})
    work.tasks["last"] = Task("last", "", frozenset({"one", "twin"}), last)
    events: list[Event] = []
    settings = Settings(jobs=1, logs=tmp_path / "logs", force=True)
    Engine(a_plan(one, twin, last), store, settings, events.append, no_fetch).run(work)
    assert sorted(outcomes(events).values()) == ["built", "built", "cached"]


def test_independent_stages_run_side_by_side(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    together = threading.Barrier(2, timeout=20)

    def meet(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
        if stage.name != "last":
            together.wait()

    kind.build_synthetic = meet  # type: ignore[attr-defined]
    a, b = a_stage("a"), a_stage("b")
    run(a_plan(a, b, a_stage("last", a=a.reference, b=b.reference)), store, tmp_path)


def fail_on(name: str) -> Build:
    def build(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
        (out / "text").write_text("half")
        if stage.name == name:
            raise BuildError("it broke")

    return build


def test_a_failed_stage_publishes_nothing_and_stops_the_build(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    kind.build_synthetic = fail_on("second")  # type: ignore[attr-defined]
    plan = chain()
    with pytest.raises(BuildError, match="it broke"):
        run(plan, store, tmp_path)
    assert store.has(plan.stage("first").key)
    assert not store.has(plan.stage("second").key)
    assert list((store.root / "tmp").iterdir()) == []
    kind.build_synthetic = concatenate  # type: ignore[attr-defined]
    assert outcomes(run(plan, store, tmp_path)) == {
        "first": "cached",
        "second": "built",
        "third": "built",
    }


def test_keep_going_builds_all_that_does_not_depend_on_the_failure(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    bad, good = a_stage("bad"), a_stage("good")
    after_good = a_stage("after-good", a=good.reference)
    last = a_stage("last", a=bad.reference, b=after_good.reference)
    plan = a_plan(bad, good, after_good, last)
    kind.build_synthetic = fail_on("bad")  # type: ignore[attr-defined]
    with pytest.raises(BuildError, match="it broke"):
        run(plan, store, tmp_path, keep_going=True)
    assert store.has(after_good.key)
    assert not store.has(last.key)


def test_sources_that_are_gone_are_one_error_that_names_them_unless_more_is_wrong(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    pins = [Pin(f"blob:{digit * 64}", f"{digit}.deb", None, {"kind": "deb"}) for digit in "abc"]
    inputs = {pin.name: pin.reference for pin in pins}
    plan = a_plan(a_stage("all", **inputs), pins=pins)
    said: dict[str, SevkitError] = {pin.name: SourceGoneError(pin.name) for pin in pins}

    def fetch(pin: Pin, path: Path, progress: object) -> None:
        raise said[pin.name]

    with pytest.raises(SourceGoneError) as caught:
        run(plan, store, tmp_path, fetch=fetch, keep_going=True)
    assert caught.value.names == ("a.deb", "b.deb", "c.deb")
    assert caught.value.what == "a.deb, b.deb, c.deb have left the mirror"
    said["b.deb"] = SourceError("b.deb could not be fetched")
    with pytest.raises(SevkitError, match="3 tasks failed") as other:
        run(plan, store, tmp_path, fetch=fetch, keep_going=True)
    assert not isinstance(other.value, SourceGoneError)


def test_a_failing_command_shows_the_line_that_matters_and_the_log(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    def build(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
        noise = "seq 1 300; echo 'x.c:3: error: no such thing' >&2; seq 1 40; exit 2"
        run(["sh", "-c", str(stage.params["text"]) and noise], cwd=run.work)

    kind.build_synthetic = build  # type: ignore[attr-defined]
    with pytest.raises(BuildError) as caught:
        run(a_plan(a_stage("only")), store, tmp_path)
    assert "status 2" in caught.value.what
    assert "x.c:3: error: no such thing" in caught.value.why
    assert caught.value.log
    assert "300" in caught.value.log.read_text()


def test_commands_see_no_network_no_home_and_no_environment_of_the_user(
    kind: types.ModuleType, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
        look = "cat /proc/net/dev; env; id -u; ls /; ls /root /home; touch /usr/x"
        run(["sh", "-c", f"({look}) > seen 2>&1 || true"], cwd=run.work)
        (run.work / "seen").rename(out / "seen")

    monkeypatch.setenv("SECRET", "of-the-user")
    kind.build_synthetic = build  # type: ignore[attr-defined]
    plan = a_plan(a_stage("look"))
    run(plan, store, tmp_path)
    seen = (store.open(plan.stage("look").key) / "seen").read_text()
    assert "lo:" in seen
    assert "eth" not in seen
    assert "of-the-user" not in seen
    assert "LC_ALL=C.UTF-8" in seen
    assert "1000" in seen
    assert "Read-only file system" in seen


def test_missing_tools_are_named_all_at_once_before_anything_runs(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    kind.TOOLS = {  # type: ignore[attr-defined]
        "sh": "dash",
        "no-such-tool": "a-package",
        "/no/such/header.h": "b-dev",
    }
    with pytest.raises(HostError) as caught:
        run(chain(), store, tmp_path)
    assert caught.value.exit_code == 3
    assert caught.value.hint == "apt-get install a-package b-dev"
    assert "no-such-tool (package a-package)" in caught.value.why
    kind.TOOLS = {"sh": "dash"}  # type: ignore[attr-defined]
    run(chain(), store, tmp_path)


def test_a_cancelled_build_kills_its_commands_and_goes_on_later(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    def build(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
        if stage.name == "slow":
            run(["sleep", "300"], cwd=run.work)
        (out / "text").write_text("made")

    kind.build_synthetic = build  # type: ignore[attr-defined]
    quick, slow = a_stage("quick"), a_stage("slow")
    plan = a_plan(quick, slow, a_stage("last", a=quick.reference, b=slow.reference))
    chosen = Settings(jobs=1, logs=tmp_path / "logs")
    engine = Engine(plan, store, chosen, lambda event: None, no_fetch)

    def interrupt() -> None:
        while not store.has(quick.key):
            time.sleep(0.01)
        time.sleep(0.3)
        engine.cancel()

    thread = threading.Thread(target=interrupt)
    thread.start()
    started = time.monotonic()
    with pytest.raises(CancelledError) as caught:
        engine.run(find_work(plan, store, ["last"]))
    thread.join()
    assert time.monotonic() - started < 30
    assert caught.value.exit_code == 130
    assert store.has(quick.key)
    assert not store.has(slow.key)
    assert list((store.root / "tmp").iterdir()) == []


def test_two_builds_of_one_plan_at_once_share_the_work(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    built = []

    def build(stage: Stage, inputs: Mapping[str, Path], out: Path, run: Runner) -> None:
        built.append(stage.name)
        time.sleep(0.2)
        concatenate(stage, inputs, out, run)

    kind.build_synthetic = build  # type: ignore[attr-defined]
    failures: list[BaseException] = []

    def one() -> None:
        try:
            run(chain(), store, tmp_path)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(built) == ["first", "second", "third"]


def a_pin(tmp_path: Path, text: str) -> Pin:
    (tmp_path / "content").write_text(text)
    digest = sha256_of(tmp_path / "content")
    return Pin(reference=f"blob:{digest}", name="a.txt", size=len(text), origin={"kind": "url"})


def test_a_source_is_fetched_once_and_used(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    pin = a_pin(tmp_path, "fetched text")
    plan = a_plan(a_stage("uses", source=pin.reference), pins=[pin])

    def fetch(pin: Pin, path: Path, progress: Callable[[int, int | None, str], None]) -> None:
        progress(1, 2, "")
        path.write_text("fetched text")

    assert outcomes(run(plan, store, tmp_path, fetch=fetch)) == {
        "fetch a.txt": "fetched",
        "uses": "built",
    }
    assert (store.open(plan.stage("uses").key) / "text").read_text() == "uses+fetched text"
    run(plan, store, tmp_path, force=True)


def test_two_sources_of_one_name_are_both_fetched_each_for_its_stage(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    one, two = a_pin(tmp_path, "one"), a_pin(tmp_path, "two")
    texts = {one.reference: "one", two.reference: "two"}
    first, second = a_stage("first", source=one.reference), a_stage("second", source=two.reference)
    last = a_stage("last", a=first.reference, b=second.reference)
    plan = a_plan(first, second, last, pins=[one, two])
    work = find_work(plan, store, ["last"])
    fetches = {name: task.pin for name, task in work.tasks.items() if task.pin is not None}
    assert sorted(fetches) == sorted(f"fetch a.txt ({pin.reference[5:17]})" for pin in (one, two))
    assert find_fetches(plan, store).tasks.keys() == fetches.keys()
    for stage, pin in ((first, one), (second, two)):
        assert [fetches[name] for name in work.tasks[stage.name].after] == [pin]
    run(plan, store, tmp_path, fetch=lambda pin, path, _: path.write_text(texts[pin.reference]))
    assert (store.open(last.key) / "text").read_text() == "last+first+one+second+two"


def test_a_source_that_is_gone_from_the_store_is_named_with_the_way_to_get_it(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    pin = a_pin(tmp_path, "text")
    plan = a_plan(a_stage("uses", source=pin.reference), pins=[pin])
    work = find_work(plan, store, ["uses"])
    del work.tasks["fetch a.txt"]
    work.tasks["uses"] = replace(work.tasks["uses"], after=frozenset())
    chosen = Settings(jobs=1, logs=tmp_path / "logs")
    with pytest.raises(ImageError, match=r"^a\.txt is not in the store") as caught:
        Engine(plan, store, chosen, lambda event: None, no_fetch).run(work)
    assert caught.value.hint == "build again"
    run(plan, store, tmp_path, fetch=lambda pin, path, _: path.write_text("text"))


def test_a_source_with_other_bytes_is_not_used(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    pin = a_pin(tmp_path, "right")
    plan = a_plan(a_stage("uses", source=pin.reference), pins=[pin])
    with pytest.raises(ImageError, match="SHA-256"):
        run(plan, store, tmp_path, fetch=lambda pin, path, progress: path.write_text("wrong"))
    assert not store.has(plan.stage("uses").key)
    run(plan, store, tmp_path, fetch=lambda pin, path, progress: path.write_text("right"))


def test_a_flipped_byte_in_the_store_fails_the_build_that_reads_it(
    kind: types.ModuleType, store: Store, tmp_path: Path
) -> None:
    plan = chain()
    run(plan, store, tmp_path, targets=["second"])
    (store.open(plan.stage("second").key) / "text").write_text("sec0nd+first")
    with pytest.raises(SevkitError, match="damaged"):
        run(plan, store, tmp_path)
    assert not store.has(plan.stage("third").key)
    run(plan, store, tmp_path)
    text = (store.open(plan.stage("third").key) / "text").read_text()
    assert text == "third+second+first+first"
