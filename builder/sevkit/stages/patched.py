# SPDX-License-Identifier: Apache-2.0
"""A patch series on its way through a stage: planned from its folder, read from the stage's inputs.

What stages that unpack and patch a source have in common; knows nothing of what the source is.
"""

from collections.abc import Mapping
from pathlib import Path

from sevkit import patches
from sevkit.canonical import Json
from sevkit.stage import Planner, Stage


def plan_series(planner: Planner, name: str | None) -> tuple[dict[str, Json], dict[str, str]]:
    """Parameters and inputs for the series in the folder `name`; none without one.

    Raises `RecipeError` for a series that is malformed.
    """
    if name is None:
        return {}, {}
    series = patches.read_series(planner.patches(name))
    rows: list[Json] = [[patch.name, patch.strip] for patch in series.patches]
    inputs = {f"patch/{patch.name}": planner.local(patch.path) for patch in series.patches}
    return {"series": {"name": series.name, "patches": rows}}, inputs


def planned_series(stage: Stage, inputs: Mapping[str, Path]) -> patches.Series | None:
    """The series that was planned for `stage`; None without one."""
    planned = stage.params.get("series")
    if not isinstance(planned, Mapping):
        return None
    rows = planned["patches"]
    assert isinstance(rows, list | tuple)
    return patches.Series(
        str(planned["name"]),
        tuple(
            patches.read_patch(inputs[f"patch/{name}"], str(name), int(strip))
            for name, strip in rows
        ),
    )


def only_folder(place: Path) -> Path | None:
    """The folder that is all there is in `place`, as archives of a source have it at their top."""
    found = list(place.iterdir())
    [only] = found if len(found) == 1 else [None]
    return only if only is not None and only.is_dir() and not only.is_symlink() else None
