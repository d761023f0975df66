# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema takes what the loader takes, and refuses what an editor can know is wrong."""

import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from recipe_samples import BASE, CHILD, Project
from test_recipe_values import BAD, GOOD

from sevkit.recipe.file import load, schema
from sevkit.recipe.library import Library

REPOSITORY = Path(__file__).resolve().parents[2]
VALIDATOR = jsonschema.Draft202012Validator(schema())
BEYOND_A_SCHEMA = (
    "tow",
    "twice",
    "no source is called",
    "there is no",
    "more than one token",
    "the initramfs is the root",
    "kernel.cmdline[0]: ",
    "bytes, the kernel takes",
    "not all of it is print",
    "agent.",
    "agent: ",
    "no level of",
    "initramfs.binaries[0]: ",
    "is the agent's place",
    "must be one line",
    "template language",
    "is no plain path",
    "initramfs.max_size: ",
)
"""Words of problems that need more than the file to be seen, or more than a schema can say."""


def fits(text: str) -> bool:
    return bool(VALIDATOR.is_valid(tomllib.loads(text)))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "recipes").glob("*.toml")), ids=str)
def test_a_shipped_recipe_fits(path: Path) -> None:
    assert fits(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", Library.of(REPOSITORY).recipes())
def test_a_shipped_recipe_still_fits_when_it_is_resolved(name: str) -> None:
    recipe = load(name, {}, Library.of(REPOSITORY))
    resolved = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    VALIDATOR.validate(resolved)
    del resolved["kernel"]["source"]
    assert not VALIDATOR.is_valid(resolved)


@pytest.mark.parametrize("text", GOOD)
def test_a_good_value_fits(text: str) -> None:
    assert fits(f"{CHILD}{text}\n")


@pytest.mark.parametrize(
    "text",
    [text for text, words in BAD if not any(part in words for part in BEYOND_A_SCHEMA)],
)
def test_a_bad_value_does_not_fit(text: str) -> None:
    document = tomllib.loads(f"{CHILD}{text}\n")
    assert not VALIDATOR.is_valid(document)


def test_templates_and_inherited_elements_fit_where_a_form_is_asked_for() -> None:
    assert fits(CHILD + 'kernel.cmdline = ["...", "a={{ series }}"]\nlaunch.vcpus = ["...", 2]\n')
    assert fits(CHILD + 'sources.x = { deb = "linux-source-{{ series }}" }\n')
    assert not fits(CHILD + 'sources.x = { deb = "linux source" }\n')
    assert not fits(CHILD + 'launch.vcpus = ["..", 2]\n')


def test_only_a_recipe_that_extends_none_must_say_everything(tmp_path: Path) -> None:
    assert Project(tmp_path).load("base")
    assert fits(BASE)
    assert not fits(BASE.replace('max_size = "14 MiB"', ""))
    assert not fits(BASE.replace('version = "1.0.0"', ""))
    assert fits(CHILD + 'initramfs.compression = "xz"\n')
    assert not fits(CHILD.replace('name = "child"', ""))


def test_every_key_is_described() -> None:
    def described(table: dict[str, Any]) -> None:
        for name, key in table["properties"].items():
            assert key.get("description") or "$ref" in key, name

    made = schema()
    described(made)
    for name, part in made["$defs"].items():
        assert part["description"], name
        if "properties" in part:
            described(part)
