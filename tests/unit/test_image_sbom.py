# SPDX-License-Identifier: Apache-2.0
"""The bill of materials against CycloneDX's own schema and the image's files."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import cyclonedx.schema
import pytest
from image_samples import image
from jsonschema import Draft7Validator
from referencing import Registry, Resource

from sevkit.exports import FORMATS, subject_of
from sevkit.image.manifest import load
from sevkit.image.sbom import SBOM, accounted, sbom_text
from sevkit.image.shape import Manifest

SCHEMAS = Path(cyclonedx.schema.__file__).parent / "_res"


def validator() -> Draft7Validator:
    """CycloneDX 1.6 with the two schemas that it refers to, from CycloneDX's Python library."""
    names = ("bom-1.6", "spdx", "jsf-0.82")
    files = [f"{name}.SNAPSHOT.schema.json" for name in names]
    schemas = [json.loads((SCHEMAS / file).read_text()) for file in files]
    places = [schemas[0]["$id"].rpartition("/")[0] + "/" + file for file in files]
    pairs = [
        (place, Resource.from_contents(schema))
        for place, schema in zip(places, schemas, strict=True)
    ]
    return Draft7Validator(schemas[0], registry=Registry().with_resources(pairs))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return image(tmp_path)


def bill_of(folder: Path) -> dict[str, Any]:
    bill: dict[str, Any] = json.loads((folder / SBOM).read_bytes())
    return bill


def test_the_bill_is_what_the_schema_of_cyclonedx_asks_for(good: Path) -> None:
    bill = bill_of(good)
    assert list(validator().iter_errors(bill)) == []
    broken = copy.deepcopy(bill)
    broken["components"][0]["type"] = "kernel"
    del broken["metadata"]["component"]["name"]
    assert len(list(validator().iter_errors(broken))) == 2


def test_equal_images_have_equal_bills_and_others_another_serial_number(
    good: Path, tmp_path: Path
) -> None:
    manifest, contents = load(good), json.loads((good / "contents.json").read_bytes())
    text = sbom_text(manifest, contents)
    assert text == sbom_text(manifest, contents)
    other = sbom_text(manifest.model_copy(update={"version": "9.9"}), contents)
    assert json.loads(other)["serialNumber"] != json.loads(text)["serialNumber"]
    assert "timestamp" not in text
    assert str(tmp_path) not in text


def test_every_file_of_the_image_is_accounted_for(good: Path) -> None:
    manifest = load(good)
    found = dict(accounted(bill_of(good)))
    for role, file in manifest.files.items():
        if role != "sbom":
            assert found[f"file:{file.path}"] == file.sha256
    contents = json.loads((good / "contents.json").read_bytes())
    for row in contents["paths"]:
        assert found[f"guest:{row['path']}"] == row.get("sha256")


def test_every_reference_is_of_something_in_the_bill_and_none_is_used_twice(good: Path) -> None:
    bill = bill_of(good)
    names = ["image", *(part["bom-ref"] for part in bill["components"])]
    inner = [ref for ref, _ in accounted(bill)]
    assert len(set(names + inner)) == len(names + inner)
    for row in bill["dependencies"]:
        assert {row["ref"], *row["dependsOn"]} <= set(names)


def test_kernel_and_firmware_are_found_by_what_the_recipe_calls_their_sources(good: Path) -> None:
    stated = json.loads((good / "manifest.json").read_bytes())
    contents = json.loads((good / "contents.json").read_bytes())
    firmware = {"kind": "url", "url": "https://a.example/x.fd"}
    file = {"reference": "blob:" + "e" * 64, "size": 7}
    rows = [
        {"source": "linux", "name": "agent.tar", "origin": {**firmware, "url": "no"}, **file},
        {**stated["sources"][0], "source": "tree"},
        {"source": "fd", "name": "x.fd", "origin": firmware, **file},
    ]
    stated["sources"] = rows
    stated["kernel"]["source"], stated["firmware"]["source"] = "tree", "fd"
    bill = json.loads(sbom_text(Manifest.model_validate_json(json.dumps(stated)), contents))
    addresses = {part["bom-ref"]: part.get("purl") for part in bill["components"]}
    assert addresses["kernel"] == "pkg:deb/debian/linux-source@1"
    assert addresses["firmware"] == f"pkg:generic/fd?checksum=sha256:{'e' * 64}"


def test_a_patch_is_told_with_its_digest(good: Path) -> None:
    manifest = load(good)
    [kernel] = [part for part in bill_of(good)["components"] if part["bom-ref"] == "kernel"]
    assert kernel["version"] == manifest.kernel.version
    assert len(kernel["pedigree"]["patches"]) == len(manifest.kernel.patches) > 0
    for patch in manifest.kernel.patches:
        assert f"{patch.name} sha256:{patch.sha256}" in kernel["pedigree"]["notes"]


def test_provenance_names_every_file_and_every_source(good: Path) -> None:
    manifest = load(good)
    statement = json.loads(FORMATS["slsa"].write(subject_of(good, mode="none")))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {row["name"]: row["digest"]["sha256"] for row in statement["subject"]}
    files = {file.path: file.sha256 for file in manifest.files.values()}
    files["manifest.json"] = hashlib.sha256((good / "manifest.json").read_bytes()).hexdigest()
    assert subjects == files
    definition = statement["predicate"]["buildDefinition"]
    digests = {
        value for row in definition["resolvedDependencies"] for value in row["digest"].values()
    }
    assert {source.reference.partition(":")[2] for source in manifest.sources} <= digests
    assert {patch.sha256 for patch in manifest.kernel.patches} <= digests
    assert definition["externalParameters"]["toolchain"] == manifest.build.toolchain
