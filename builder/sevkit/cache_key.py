# SPDX-License-Identifier: Apache-2.0
"""What the cache of a CI pipeline is keyed on: all that a build rests on, without asking anybody.

A stage's key needs its sources resolved, which a machine with an empty store can't do without
network. Here a source that no lock pins counts by what the recipe says of it, and the machine's
own memory of earlier look-ups never counts, so that two machines print the same.
"""

import hashlib
from collections.abc import Sequence

from sevkit.plan import make_plan, requests
from sevkit.project import Project
from sevkit.recipe import Recipe
from sevkit.sources import Pin
from sevkit.sources.pins import described
from sevkit.stage import canonical_json

Inputs = Sequence[tuple[str, str]]
"""Kind of input, and the input with its digest or version."""


def inputs_of(recipe: Recipe, project: Project) -> Inputs:
    """Every input of a build of `recipe`, sorted: sources, files of the project, tools, stages."""
    lock = project.lock(recipe)
    pins: dict[str, Sequence[Pin]] = {}
    rows: list[tuple[str, str]] = []
    for name, request in requests(recipe, project.toolchain).items():
        text = canonical_json(described(request))
        found = lock.pins(request) if lock is not None else None
        if found is None:
            digest = hashlib.sha256(text.encode()).hexdigest()
            found = [Pin(f"blob:{digest}", name, None, {"kind": "unpinned"})]
            rows.append(("unpinned", f"{name} {text}"))
        else:
            rows += [("source", f"{name} {pin.name} {pin.reference}") for pin in found]
        pins[name] = found
    if lock is not None:
        rows += [("config", f"{name} {digest}") for name, digest in lock.configs.values()]
    plan = make_plan(recipe, project.library, pins, project.toolchain)
    for reference, path in plan.local.items():
        roots = [root for root in project.library.roots if path.is_relative_to(root)]
        rows.append(("file", f"{path.relative_to(roots[0]) if roots else path.name} {reference}"))
    for stage in plan.stages:
        tools = stage.params.get("tools", {})
        if isinstance(tools, dict):
            rows += [("tool", f"{name}: {version}") for name, version in tools.items()]
        rows.append(("stage", f"{stage.name} {stage.key}"))
    return sorted(set(rows))


def key_of(inputs: Inputs) -> str:
    """SHA-256 of the inputs, lower-case hex."""
    text = "\n".join(f"{kind} {what}" for kind, what in inputs)
    return hashlib.sha256(text.encode()).hexdigest()
