# SPDX-License-Identifier: Apache-2.0
"""What the cache of a CI pipeline is keyed on: all that a build rests on, without asking anybody.

A stage's key needs its sources resolved, which a machine with an empty store can't do without
network. Here a package that no lock pins counts by what the recipe says of it, and the machine's
own memory of earlier look-ups never counts, so that two machines print the same.
"""

import hashlib
from collections.abc import Sequence

from sevkit.canonical import canonical_json, sha256_of
from sevkit.plan import requests
from sevkit.project.project import Project
from sevkit.recipe.model import Recipe
from sevkit.sources.pins import described

Inputs = Sequence[tuple[str, str]]
"""Kind of input, and the input with its digest or version."""


def inputs_of(recipe: Recipe, project: Project) -> Inputs:
    """Every input of a build of `recipe`, sorted.

    Sources, variables, files of the project (the recipe's own too), tools, stages.
    Raises `RecipeError` for what is not locked, where the project must be.
    """
    plan, stated = project.plan_without_asking(recipe)
    rows = [("variable", f"{name}={value}") for name, value in recipe.vars.items()]
    for name, request in requests(recipe, project.toolchain).items():
        if name in stated:
            rows += [("source", f"{name} {pin.name} {pin.reference}") for pin in stated[name]]
        else:
            rows.append(("unpinned", f"{name} {canonical_json(described(request))}"))
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


def key_of(inputs: Inputs) -> str:
    """SHA-256 of the inputs, lower-case hex."""
    text = "\n".join(f"{kind} {what}" for kind, what in inputs)
    return hashlib.sha256(text.encode()).hexdigest()
