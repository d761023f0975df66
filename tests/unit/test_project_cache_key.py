# SPDX-License-Identifier: Apache-2.0
"""The key of a CI cache: it follows every input that it lists, and nothing else."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_plan import REPOSITORY, fake_pins

from sevkit import plan as planning
from sevkit.errors import RecipeError
from sevkit.events import Event
from sevkit.plan import make_plan, requests
from sevkit.project.cache_key import Inputs, inputs_of, key_of
from sevkit.project.lock import Choice, Lock, config_key
from sevkit.project.project import Project
from sevkit.sources import Pin
from sevkit.toolchain import HOST, Toolchain

Inside = Callable[..., Inputs]
CONFIG = b"CONFIG_64BIT=y\n"
FOLDERS = ("recipes", "kernel-configs", "patches", "agent")
CHANGES = {
    "grown": lambda data: data + b"\n",
    "cut": lambda data: data[:-1],
    "one bit": lambda data: bytes([data[0] ^ 1]) + data[1:],
}


def heard(_: Event) -> None:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("project")
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, made / name)
    (made / "notes.txt").write_text("of no build\n")
    (made / "kernel-configs" / "unused.config").write_text("# Nobody's.\nCONFIG_SWAP=y\n")
    (made / "patches" / "linux-6.12" / "not-in-the-series.patch").write_text("nothing\n")
    return made


@pytest.fixture(scope="module")
def tools() -> Iterator[dict[str, str]]:
    """Versions that tools say they have; all others say 1.0."""
    said: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(planning, "tool_version", lambda name: f"{name} {said.get(name, '1.0')}")
        yield said


@pytest.fixture(scope="module")
def inputs(folder: Path, tools: dict[str, str]) -> Inside:
    def ask(
        toolchain: Toolchain = HOST,
        name: str = "sev-guest-ovmf",
        *,
        locked: bool = False,
        **values: str,
    ) -> Inputs:
        store = folder / "store"
        project = Project(folder, folder / "out", store, heard, toolchain, locked)
        return inputs_of(project.recipe(name, values), project)

    return ask


def lockable_pins(names: Mapping[str, object]) -> dict[str, list[Pin]]:
    """Those of `fake_pins`, with all that a lock wants to know."""
    return {
        name: [
            replace(pin, origin={**pin.origin, "version": "1", "path": "pool/p.deb"})
            for pin in pins
        ]
        for name, pins in fake_pins(names).items()
    }


def listed(folder: Path, rows: Inputs) -> set[Path]:
    """The files that the rows say they cover."""
    places = [folder / what.split(" ")[0] for kind, what in rows if kind == "file"]
    return {
        path
        for place in places
        for path in (place.rglob("*") if place.is_dir() else [place])
        if path.is_file()
    }


def everything(folder: Path) -> list[Path]:
    names = [folder / name for name in FOLDERS]
    found = [path for name in names for path in name.rglob("*") if path.is_file()]
    return sorted([*found, folder / "notes.txt"])


@pytest.fixture(scope="module")
def untouched(inputs: Inside) -> Inputs:
    return inputs()


@settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_the_key_follows_the_files_that_it_lists_and_no_other(
    data: st.DataObject, folder: Path, inputs: Inside, untouched: Inputs
) -> None:
    covered = listed(folder, untouched)
    files = [path for path in everything(folder) if path.stat().st_size]
    path = data.draw(st.sampled_from(files))
    change = data.draw(st.sampled_from(sorted(CHANGES)))
    whole = path.read_bytes()
    path.write_bytes(CHANGES[change](whole))
    try:
        after = key_of(inputs())
    except RecipeError:
        assert path in covered, f"{path} is an input, and is not listed"
        return
    finally:
        path.write_bytes(whole)
    assert (after != key_of(untouched)) == (path in covered), f"{path}, {change}"


def test_what_is_listed_is_what_a_build_reads(folder: Path, untouched: Inputs) -> None:
    names = {str(path.relative_to(folder)) for path in listed(folder, untouched)}
    series = (folder / "patches/linux-6.12/series").read_text().split()
    assert {f"patches/linux-6.12/{name}" for name in series if name.endswith(".patch")} <= names
    assert {"agent/version.h", "kernel-configs/base.config"} <= names
    assert {"recipes/sev-guest-ovmf.toml", "recipes/sev-guest.toml"} <= names
    assert not {"recipes/sev-guest-lean.toml"} & names
    assert ("variable", "kernel_series=6.12") in untouched
    unused = {"kernel-configs/unused.config", "patches/linux-6.12/not-in-the-series.patch"}
    assert not names & {*unused, "notes.txt"}


def test_every_tool_and_every_variable_has_another_key(
    tools: dict[str, str], inputs: Inside
) -> None:
    before = inputs()
    seen = {key_of(before), key_of(inputs(kernel_series="6.1")), key_of(inputs(name="sev-guest"))}
    named = [what.partition(":")[0] for kind, what in before if kind == "tool"]
    assert {"gcc", "ld", "zstd"} <= set(named)
    for number, name in enumerate(named):
        tools[name] = "2.0"
        seen.add(key_of(inputs()))
        del tools[name]
        assert len(seen) == 4 + number, name
    assert key_of(inputs()) == key_of(before)


def test_every_toolchain_has_a_key_of_its_own(inputs: Inside) -> None:
    trixie, bookworm = Toolchain("trixie"), Toolchain("bookworm")
    keys = [
        key_of(inputs(one)) for one in (HOST, trixie, bookworm, Toolchain(None, confined=False))
    ]
    assert len(set(keys)) == 4
    assert any("debs:toolchain" in what for kind, what in inputs(trixie) if kind == "unpinned")


def test_what_is_locked_counts_by_its_digest_and_what_is_not_is_refused_when_asked(
    folder: Path, inputs: Inside
) -> None:
    path = folder / "recipes" / "sev-guest-ovmf.lock"
    config = path.with_name("sev-guest-ovmf-6.12.config")
    project = Project(folder, folder / "out", folder / "store", heard)
    recipe = project.recipe("sev-guest-ovmf", {})
    wanted = requests(recipe)
    lock = Lock(path, recipe.name)
    with pytest.raises(RecipeError, match="there is no"):
        inputs(locked=True)
    unlocked = key_of(inputs())
    try:
        for name, pins in lockable_pins(wanted).items():
            lock.write({})
            with pytest.raises(RecipeError, match="is not locked as"):
                inputs(locked=True)
            lock = lock.with_pins(name, wanted[name], pins)
        lock.write({})
        with pytest.raises(RecipeError, match="locks no kernel configuration"):
            inputs(locked=True)
        assert key_of(inputs()) != unlocked
        plan = make_plan(recipe, project.library, lockable_pins(wanted))
        lock = lock.with_config(
            config_key(plan.stage("kernel")), "6.12", CONFIG, Choice("host", {})
        )
        lock.write({config.name: CONFIG})
        rows = inputs(locked=True)
        assert {kind for kind, _ in rows} == {"file", "source", "stage", "tool", "variable"}
        assert key_of(rows) == key_of(inputs()) != unlocked
        named = [what for _, what in rows if config.name in what]
        assert named == [f"recipes/{config.name} blob:{hashlib.sha256(CONFIG).hexdigest()}"]
        more = lock.with_config("d" * 64, "6.12", b"other", Choice("debian:trixie", {}))
        more.write({more.configs["d" * 64].file: b"other"})
        assert key_of(inputs()) == key_of(rows)
        other = next(iter(lockable_pins({"x": 1, "linux": 2}).values()))
        lock.with_pins("linux", wanted["linux"], other).write({})
        assert key_of(inputs()) != key_of(rows)
        with pytest.raises(RecipeError, match="debs:toolchain is not locked"):
            inputs(Toolchain("trixie"), locked=True)
    finally:
        path.unlink(missing_ok=True)
        for made in path.parent.glob("sev-guest-ovmf-6.12*.config"):
            made.unlink()
