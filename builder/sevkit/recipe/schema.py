# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema of what one may write in a recipe file, for editors.

It describes a file: templates not yet rendered, what is inherited not yet there. It is made from
the models in `model.py` and never decides whether a recipe is right.
"""

from typing import Any

_TEMPLATE = {"$ref": "#/$defs/Template"}
_MERGED = ("Kernel", "Initramfs", "Launch")
_FROM_PARENT = ("version", "sources", "kernel", "agent", "initramfs", "firmware")


def schema() -> dict[str, Any]:
    """The JSON Schema, draft 2020-12."""
    from sevkit.recipe.model import Recipe

    made = Recipe.model_json_schema(by_alias=True)
    parts = made.pop("$defs")
    missing = {
        name.lower(): {"required": parts[name].pop("required")}
        for name in _MERGED
        if "required" in parts[name]
    }
    made["required"] = ["schema", "name"]
    body = _writable({**made, "$defs": parts})
    body["description"] = "A recipe file of sevkit."
    body["properties"]["extends"] = {
        "type": "string",
        "minLength": 1,
        "description": "The recipe that this one builds on, by name or by path; what is not said "
        "here, except the name, is taken from it.",
    }
    body["$defs"]["Template"] = {
        "type": "string",
        "pattern": r"\{[{#%]",
        "description": "Text with Jinja2 expressions over the recipe's variables.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:sevkit:recipe:1",
        **body,
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": list(_FROM_PARENT), "properties": missing},
    }


def _writable(value: Any) -> Any:
    """`value` with null taken out, which TOML has not, and with templates and "..." let in."""
    if isinstance(value, list):
        return [_writable(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    value = {key: inner for key, inner in value.items() if (key, type(inner)) != ("title", str)}
    if value.get("default", ...) is None:
        del value["default"]
    options = [o for o in value.get("anyOf", ()) if o != {"type": "null"}]
    if "anyOf" in value and len(options) == 1:
        del value["anyOf"]
        value |= options[0]
    if value.get("type") == "string" and {"pattern", "enum"} & value.keys():
        strict = {key: value.pop(key) for key in ("type", "pattern", "enum") if key in value}
        return {**value, "anyOf": [strict, _TEMPLATE]}
    made = {key: _writable(inner) for key, inner in value.items() if key != "default"}
    if made.get("type") == "array":
        items = made["items"]
        options = items["anyOf"] if list(items) == ["anyOf"] else [items]
        made["items"] = {"anyOf": [*options, {"const": "..."}]}
    if "patternProperties" in made:
        made["additionalProperties"] = False
    if "default" in value:
        made["default"] = value["default"]
    return made
