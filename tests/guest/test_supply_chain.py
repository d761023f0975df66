# SPDX-License-Identifier: Apache-2.0
"""The bill, the provenance and the signature of a real image (docs/supply-chain.md)."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sevkit.image.sbom import accounted
from sevkit.store.store import default_root

pytestmark = pytest.mark.network

Sevkit = Callable[..., subprocess.CompletedProcess[str]]
Listing = Mapping[str, str | None]


def in_image(image: Path, unpacked: Path) -> Listing:
    """File or guest path → SHA-256, read from the image itself and not from its manifest."""
    left_out = {"manifest.json", "SHA256SUMS", "sbom.cdx.json"}
    files: dict[str, str | None] = {
        f"file:{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in image.iterdir()
        if path.name not in left_out
    }
    unpacked.mkdir(exist_ok=True)
    script = 'zstd -dc "$1" | bsdtar -xf - -C "$2"'
    subprocess.run(["sh", "-c", script, "sh", image / "initramfs", unpacked], check=True)
    for path in unpacked.rglob("*"):
        is_file = path.is_file() and not path.is_symlink()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else None
        files[f"guest:/{path.relative_to(unpacked)}"] = digest
    return files


def lacks(image: Path, bill: Mapping[str, Any], unpacked: Path) -> set[str]:
    """What is in the image and not, or otherwise, in the bill."""
    stated = dict(accounted(bill))
    return {
        name
        for name, digest in in_image(image, unpacked).items()
        if name not in stated or (digest is not None and stated[name] != digest)
    }


def test_the_bill_accounts_for_every_file_of_the_image(sev_guest: Path, tmp_path: Path) -> None:
    bill = json.loads((sev_guest / "sbom.cdx.json").read_bytes())
    assert lacks(sev_guest, bill, tmp_path / "u") == set()
    without = {
        **bill,
        "components": [part for part in bill["components"] if part["bom-ref"] != "deb:crun"],
    }
    assert set(dict(accounted(bill))) <= set(in_image(sev_guest, tmp_path / "u"))
    assert "guest:/usr/bin/crun" in lacks(sev_guest, without, tmp_path / "u")


def test_the_packages_of_the_bill_are_those_that_dpkg_reads_in_the_debs(sev_guest: Path) -> None:
    bill = json.loads((sev_guest / "sbom.cdx.json").read_bytes())
    packages = [part for part in bill["components"] if part["bom-ref"].startswith("deb:")]
    assert {"crun", "libc6"} <= {part["name"] for part in packages}
    for part in packages:
        digest = {row["name"]: row["value"] for row in part["properties"]}["sevkit:deb_sha256"]
        deb = default_root(os.environ) / "blobs" / digest[:2] / digest
        said = subprocess.run(
            ["dpkg-deb", "-f", deb, "Package", "Version", "Architecture"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        fields = dict(line.split(": ") for line in said.splitlines())
        assert (fields["Package"], fields["Version"]) == (part["name"], part["version"])
        assert part["purl"].startswith(f"pkg:deb/debian/{fields['Package'].replace('+', '%2B')}@")
        listed = subprocess.run(
            ["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" | tar -tf -', "sh", deb],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        names = {Path(name).name for name in listed}
        for inner in part["components"]:
            assert Path(inner["name"]).name in names, inner["name"]


def test_an_image_is_signed_here_and_in_two_steps(
    sevkit: Sevkit, sev_guest: Path, tmp_path: Path
) -> None:
    image = shutil.copytree(sev_guest, tmp_path / "image")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    unsigned = sevkit("verify", image, "--key", f"{key}.pub")
    assert unsigned.returncode == 4
    assert "is not signed" in unsigned.stderr
    before = sevkit("measure", image).stdout
    assert sevkit("sign", image, "--key", key).returncode == 0
    verified = sevkit("verify", image, "--key", f"{key}.pub")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "as published" in verified.stdout
    assert sevkit("measure", image).stdout == before
    here = (image / "manifest.json.sig").read_bytes()

    (image / "manifest.json.sig").unlink()
    exported = sevkit("sign", image, "--export", tmp_path / "to-sign")
    assert exported.returncode == 0, exported.stderr
    words = ["-Y", "sign", "-n", "sevkit-manifest", "-f", key, tmp_path / "to-sign"]
    subprocess.run(["ssh-keygen", *words], check=True, capture_output=True)
    attached = sevkit("sign", image, "--attach", tmp_path / "to-sign.sig")
    assert attached.returncode == 0, attached.stderr
    assert (image / "manifest.json.sig").read_bytes() == here
    assert sevkit("verify", image, "--key", f"{key}.pub").returncode == 0
    assert sevkit("sign", image).returncode == 2


def test_provenance_comes_from_the_manifest(sevkit: Sevkit, sev_guest: Path) -> None:
    result = sevkit("export", sev_guest, "slsa")
    assert result.returncode == 0, result.stderr
    statement = json.loads(result.stdout)
    manifest = json.loads((sev_guest / "manifest.json").read_bytes())
    names = {row["name"] for row in statement["subject"]}
    assert names == {path.name for path in sev_guest.iterdir()} - {"SHA256SUMS"}
    dependencies = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    addresses = {row.get("uri") for row in dependencies}
    assert any(str(uri).startswith("pkg:deb/debian/linux-source-6.12@") for uri in addresses)
    assert statement["predicate"]["runDetails"]["metadata"]["invocationId"] == manifest["build_id"]
