# SPDX-License-Identifier: Apache-2.0
"""Builds an image once more from what its manifest says, and compares every byte.

Sources are the ones that the manifest names, the tools are those that it says were used; recipe,
fragments and patches are the project's, and what of them is not as it was is told. Nothing that
was built before is taken up unless asked for: the work is done in a store of its own that starts
with the sources alone. Never changes the image or the project's output.
"""

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sevkit.engine import Settings, find_work
from sevkit.errors import HostError, ImageError, RecipeError, SevkitError, SourceError
from sevkit.events import Notice
from sevkit.image.diff import differences
from sevkit.image.manifest import SIGNATURE, Manifest
from sevkit.image.output import build_id
from sevkit.image.published import published
from sevkit.plan import Pins, make_plan, requests
from sevkit.project.project import Project
from sevkit.recipe.model import FileSource, Recipe
from sevkit.sources import Pin, SourceGoneError
from sevkit.sources.pins import described, read_pins, self_pinned
from sevkit.stage import Plan, changes
from sevkit.store.store import Store
from sevkit.toolchain import Toolchain, toolchain

_DIFFOSCOPE = ("diffoscope", "--exclude-directory-metadata=yes", "--text=-")
_DIFFOSCOPE_SECONDS = 600
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Comparison:
    """One file of the image: `difference` is None where both have the same bytes."""

    name: str
    difference: str | None


@dataclass(frozen=True)
class Reproduction:
    """What came of building an image again."""

    image: Path
    files: Sequence[Comparison]
    other_inputs: Sequence[str]
    """What of the project or the host is not what the image was built from, a line each."""
    causes: Sequence[str]
    """Why the bytes differ, as far as the images tell, a line each."""
    explanation: str
    """What diffoscope(1) says; empty where nothing differs or it is not installed."""

    @property
    def is_same(self) -> bool:
        """Whether every file has the same bytes."""
        return all(file.difference is None for file in self.files)


def reproduce(
    project: Project,
    image: Path,
    settings: Settings,
    *,
    name: str | None = None,
    reuse: Sequence[str] = (),
    keep: Path | None = None,
) -> Reproduction:
    """Build the image in the directory `image` again, from recipe `name` (default: its own).

    The stages in `reuse` are taken from the project's store as they were built; `keep` is a new
    folder for what was built. Raises `ImageError` when the image is not as it was published,
    `RecipeError` where `keep` is there already, or the project lacks its recipe or one of its
    files, and whatever a build raises.
    """
    manifest = published(image)
    if keep is not None and keep.exists():
        raise RecipeError(f"{keep} is there already", hint="name a folder that is not")
    tools = toolchain(manifest.build.toolchain, manifest.build.sandbox)
    recipe = project.recipe(name or manifest.name, manifest.build.variables)
    locked_config = partial(project.locked_config, project.lock(recipe))
    pins = _pins(manifest, recipe, tools)
    plan = make_plan(recipe, project.library, pins, tools, locked_config)
    differing = list(other_inputs(plan, manifest))
    for line in differing:
        project.listener(Notice(line))
    with project.store.scratch() as scratch:
        again = replace(
            project, output=scratch / "output", store_root=scratch / "store", toolchain=tools
        )
        store = again.store
        _share_sources(plan, project.store, store, scratch / "source")
        for stage in map(plan.stage, reuse):
            shutil.copytree(project.store.open(stage.key), scratch / "reused", symlinks=True)
            store.publish(stage, scratch / "reused")
        try:
            again.run(
                plan,
                find_work(plan, store, ["image"]),
                replace(settings, confined=tools.confined),
            )
        except SourceGoneError as gone:
            raise SourceError(
                gone.what,
                why=f"{manifest.name} {manifest.build_id} was built from it",
                hint="take the store, or a vendored folder, in which the image was built",
            ) from gone
        made = store.open(plan.stage("image").key)
        files = list(compared(image, made))
        is_same = all(file.difference is None for file in files)
        answer = Reproduction(
            image=image,
            files=files,
            other_inputs=differing,
            causes=[] if is_same else list(_causes(image, made)),
            explanation="" if is_same else _diffoscope(image, made),
        )
        if keep is not None:
            shutil.copytree(made, keep)
    return answer


def _pins(manifest: Manifest, recipe: Recipe, tools: Toolchain) -> Pins:
    """The sources of the manifest, by request, from where the recipe has them.

    Raises `ImageError` where the recipe wants more, or itself names another file or commit: an
    image must not say what is fetched from where.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in manifest.sources:
        if row.origin.get("kind") != "file":
            found.setdefault(row.source, []).append(row.model_dump(exclude={"source"}))
    wanted = requests(recipe, tools)
    packaged = {name for name, request in wanted.items() if not isinstance(request, FileSource)}
    if lacking := sorted(packaged - found.keys()):
        raise ImageError(
            f"the image was built from another recipe: it has no source {', '.join(lacking)}",
            why=f"{recipe.name} of this project asks for it now",
            hint="take the project as it was when the image was built",
        )
    pins: dict[str, Sequence[Pin]] = dict.fromkeys(wanted, ())
    for name in packaged:
        try:
            pins[name] = read_pins(found[name], described(wanted[name]))
        except (ValueError, KeyError, TypeError) as error:
            raise ImageError(
                f"the manifest does not say what {name} was", why=f"{type(error).__name__}: {error}"
            ) from error
        own = self_pinned(wanted[name])
        if own is None:
            continue
        if [pin.reference for pin in own] != [pin.reference for pin in pins[name]]:
            raise ImageError(
                f"the image was built from another {name}",
                why=f"{recipe.name} of this project names {own[0].reference}, "
                f"the manifest {pins[name][0].reference}",
                hint="take the project as it was when the image was built",
            )
        pins[name] = own
    return pins


def _share_sources(plan: Plan, old: Store, new: Store, draft: Path) -> None:
    """Give `new` the fetched files that `old` has; whatever is missing will be fetched."""
    for reference in plan.pins:
        if not old.has_blob(reference) or new.has_blob(reference):
            continue
        blob = old.blob(reference)
        try:
            draft.hardlink_to(blob)
        except OSError:  # of another user, where the kernel protects hard links (proc(5))
            shutil.copyfile(blob, draft)
        new.add_blob(draft, reference)


def other_inputs(plan: Plan, manifest: Manifest) -> Iterator[str]:
    """What a build of `plan` would rest on and the image of `manifest` does not, a line each."""
    stage = plan.stage("image")
    if build_id(stage) == manifest.build_id:
        return
    yield f"this is not what {manifest.name} {manifest.build_id} was built from:"
    named = [*_other_facts(stage.params, manifest), *_other_stages(stage.params, manifest)]
    yield from named or ["what the agent needs, or how sevkit makes an image, is another"]


def _other_facts(params: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    stated = manifest.model_dump(mode="json")
    for part in ("version", "summary", "variant", "cmdline", "toolchain"):
        if params[part] != stated[part]:
            yield f"{part}: {_text(stated[part])} → {_text(params[part])}"
    modes = [mode for mode, facts in manifest.launch.modes.items() if facts.asked]
    launch = {**stated["launch"], "modes": sorted(modes)}
    for part, value in {**params["launch"], "modes": sorted(params["launch"]["modes"])}.items():
        if value != launch[part]:
            yield f"launch.{part}: {_text(launch[part])} → {_text(value)}"
    before = {(row.source, row.name): row.reference for row in manifest.sources}
    after = {(row["source"], row["name"]): row["reference"] for row in params["sources"]}
    for source, name in sorted(before.keys() | after.keys()):
        key = (source, name)
        if before.get(key) != after.get(key):
            yield f"sources: {source}: {name} is another one"


def _other_stages(params: Mapping[str, Any], manifest: Manifest) -> Iterator[str]:
    before = {name: row.model_dump() for name, row in manifest.build.stages.items()}
    after: Mapping[str, Any] = params["build"]["stages"]
    for stage in sorted(before.keys() | after.keys()):
        if stage not in before or stage not in after:
            yield f"{stage}: is {'new' if stage in after else 'gone'}"
            continue
        old, new = before[stage], after[stage]
        if old["version"] != new["version"]:
            yield f"{stage}: sevkit makes it in another way"
        yield from (f"{stage}: {role} {what}" for role, what in _files(old, new))
        yield from (f"{stage}: {line}" for line in changes(old["params"], new["params"], str))


def _files(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The files of the project that two records of a stage do not share, and how so."""
    before, after = old["inputs"], new["inputs"]
    for role in sorted(before.keys() | after.keys()):
        if role not in before:
            yield role, "is new"
        elif role not in after:
            yield role, "is gone"
        elif before[role] != after[role]:
            yield role, "is another one"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(str(text) for text in value.values())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def compared(image: Path, made: Path) -> Iterator[Comparison]:
    """Every file of two image directories, by name; what comes after a build is left out."""
    names = {path.name for folder in (image, made) for path in folder.iterdir()} - {SIGNATURE}
    for name in sorted(names):
        old, new = image / name, made / name
        if not old.exists():
            yield Comparison(name, "is only in the one built now")
        elif not new.exists():
            yield Comparison(name, "was not built again")
        else:
            yield Comparison(name, _difference(old, new))


def _difference(old: Path, new: Path) -> str | None:
    sizes = old.stat().st_size, new.stat().st_size
    offset = 0
    with old.open("rb") as first, new.open("rb") as second:
        while True:
            blocks = first.read(_BLOCK), second.read(_BLOCK)
            if blocks[0] != blocks[1]:
                pairs = enumerate(zip(*blocks, strict=False))
                offset += next((at for at, (a, b) in pairs if a != b), min(map(len, blocks)))
                return f"differs from byte {offset} on ({sizes[0]} and {sizes[1]} bytes)"
            if not blocks[0]:
                return None
            offset += len(blocks[0])


def _causes(image: Path, made: Path) -> Iterator[str]:
    try:
        yield from map(str, differences(image, made))
    except SevkitError as error:
        yield f"the images can't be compared part by part: {error.what}"


def _diffoscope(image: Path, made: Path) -> str:
    """What diffoscope says of the two folders; empty where it is not installed."""
    if shutil.which(_DIFFOSCOPE[0]) is None:
        return ""
    try:
        done = subprocess.run(
            [*_DIFFOSCOPE, image, made],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_DIFFOSCOPE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"diffoscope was not done after {_DIFFOSCOPE_SECONDS} s\n"
    if done.returncode > 1:
        raise HostError("diffoscope failed", why=done.stderr.decode("utf-8", "replace").strip())
    text = done.stdout.decode("utf-8", "replace")
    return text.replace(f"{image}", "published").replace(f"{made}", "rebuilt")
