# SPDX-License-Identifier: Apache-2.0
"""The bill of materials against CycloneDX's own schema and the image's files."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import cyclonedx.schema
import pytest
from hostile_archives import deb, tar
from image_samples import PATHS, Bench, image, recipe
from jsonschema import Draft7Validator
from referencing import Registry, Resource

from sevkit.exports import FORMATS, subject_of
from sevkit.image.manifest import load
from sevkit.image.sbom import SBOM, accounted, package_url, sbom_text
from sevkit.image.shape import Manifest, Source

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


@pytest.fixture(params=["separate", "builtin"])
def good(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return image(tmp_path, request.param)


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
    assert ("file:initramfs" in found) is (manifest.initramfs.placement == "separate")
    for row in PATHS:
        assert found[f"guest:{row['path']}"] == row.get("sha256")
    assert len([name for name in found if name.startswith("guest:")]) == len(PATHS)


def test_a_path_of_the_guest_stands_under_what_it_comes_from(good: Path) -> None:
    owners = {
        part["name"]: component["bom-ref"]
        for component in bill_of(good)["components"]
        for part in component.get("components", ())
        if part["bom-ref"].startswith("guest:")
    }
    assert owners == {
        "/dev": "initramfs",
        "/dev/console": "initramfs",
        "/init": "agent",
        "/usr/bin/crun": "deb:crun",
        "/usr/bin/oci": "deb:crun",
    }


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


@pytest.mark.parametrize(
    ("archive", "distribution"),
    [(None, "debian"), ("debian", "debian"), ("debian-security", "debian"), ("ubuntu", "ubuntu")],
)
def test_an_address_names_the_distribution_that_a_package_is_from(
    archive: str | None, distribution: str
) -> None:
    origin = {"kind": "deb", "package": "g++", "version": "1:2", "architecture": "amd64"}
    origin |= {} if archive is None else {"archive": archive}
    row = {"source": "s", "reference": "blob:" + "e" * 64, "name": "n", "size": 7, "origin": origin}
    address = package_url(Source.model_validate(row))
    assert address == f"pkg:deb/{distribution}/g%2B%2B@1%3A2?arch=amd64"


COPYRIGHT = b"""Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: somebody
License: BSD-2-Clause and Expat
"""


@pytest.mark.parametrize(
    ("copyright_file", "stated", "licences"),
    [
        (None, None, [{"license": {"name": "NOASSERTION"}}]),
        (None, "MIT", [{"license": {"id": "MIT"}}]),
        (COPYRIGHT, None, [{"expression": "BSD-2-Clause AND MIT"}]),
        (COPYRIGHT, "MIT", [{"license": {"id": "MIT"}}]),
        (b"All rights reserved.", None, [{"license": {"name": "see copyright"}}]),
        (b"", None, [{"license": {"name": "see copyright"}}]),
    ],
)
def test_firmware_has_the_licence_that_its_package_or_the_recipe_states(
    copyright_file: bytes | None, stated: str | None, licences: object, tmp_path: Path
) -> None:
    firmware = {"source": "ovmf", "licence": stated}
    if copyright_file is not None:
        firmware["member"] = "usr/share/OVMF.fd"
    bench = Bench(tmp_path, recipe(firmware=firmware))
    place = tmp_path / "OVMF.fd"
    if copyright_file is not None:
        files = {"./usr/share/OVMF.fd": place.read_bytes()}
        if copyright_file:
            files["./usr/share/doc/p/copyright"] = copyright_file
        place.write_bytes(deb(tar(files)))
    bench.others()
    bench.firmware()
    folder = bench.image()
    [made] = [part for part in bill_of(folder)["components"] if part["bom-ref"] == "firmware"]
    assert made["licenses"] == licences
    assert list(validator().iter_errors(bill_of(folder))) == []


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
