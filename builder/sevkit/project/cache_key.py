# SPDX-License-Identifier: Apache-2.0
"""What the cache of a CI pipeline is keyed on: all that a build rests on, without asking anybody.

A stage's key needs its sources resolved, which a machine with an empty store can't do without
network. Here a package that no lock pins counts by what the recipe says of it, and the machine's
own memory of earlier look-ups never counts, so that two machines print the same.
"""

import hashlib
from collections.abc import Sequence
from functools import partial

from sevkit.canonical import canonical_json, sha256_of
from sevkit.plan import make_plan, requests
from sevkit.project.project import Project
from sevkit.recipe.model import Recipe
from sevkit.sources import DebGroup, Pin, Request
from sevkit.sources.pins import described

Inputs = Sequence[tuple[str, str]]
"""Kind of input, and the input with its digest or version."""


def inputs_of(recipe: Recipe, project: Project) -> Inputs:
    """Every input of a build of `recipe`, sorted.

    Sources, variables, files of the project (the recipe's own too), tools, stages.
    Raises `RecipeError` for what is not locked, where the project must be.
    """
    lock = project.lock(recipe)
    pins: dict[str, Sequence[Pin]] = {}
    rows = [("variable", f"{name}={value}") for name, value in recipe.vars.items()]
    for name, request in requests(recipe, project.toolchain).items():
        found = project.stated_pins(lock, name, request)
        if found is None:
            found = _unpinned(name, request)
            rows.append(("unpinned", f"{name} {canonical_json(described(request))}"))
        else:
            rows += [("source", f"{name} {pin.name} {pin.reference}") for pin in found]
        pins[name] = found
    locked_config = partial(project.locked_config, lock)
    plan = make_plan(recipe, project.library, pins, project.toolchain, locked_config)
    files = [(path, f"blob:{sha256_of(path)}") for path in project.files(recipe)]
    files += [(local.path, reference) for reference, local in plan.local.items()]
    for path, reference in files:
        roots = [root for root in project.library.roots if path.is_relative_to(root)]
        rows.append(("file", f"{path.relative_to(roots[0]) if roots else path.name} {reference}"))
    for stage in plan.stages:
        tools = stage.params.get("tools", {})
        if isinstance(tools, dict):
            rows += [("tool", f"{name}: {version}") for name, version in tools.items()]
        rows.append(("stage", f"{stage.name} {stage.key}"))
    return sorted(set(rows))


def _unpinned(name: str, request: Request) -> Sequence[Pin]:
    """Stand-ins for the files of a request that nobody has resolved: what it asks for, hashed."""
    text = canonical_json(described(request))
    reference = f"blob:{hashlib.sha256(text.encode()).hexdigest()}"
    if isinstance(request, DebGroup):
        origins = [{"package": package, "version": "unpinned"} for package in request.packages]
        return [Pin(reference, origin["package"], None, origin) for origin in origins]
    return [Pin(reference, name, None, {})]


def key_of(inputs: Inputs) -> str:
    """SHA-256 of the inputs, lower-case hex."""
    text = "\n".join(f"{kind} {what}" for kind, what in inputs)
    return hashlib.sha256(text.encode()).hexdigest()
