# SPDX-License-Identifier: Apache-2.0
"""Where an image comes from, as SLSA provenance: in-toto Statement v1, predicate SLSA v1.

https://slsa.dev/spec/v1.0/provenance. Says what the manifest says and no more: no time, no machine,
no account, so that whoever builds the image again gets the same statement. Sign it as any file.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sevkit.exports.subject import Subject
from sevkit.image.manifest import MANIFEST, text_of
from sevkit.image.sbom import package_url
from sevkit.image.shape import Source

_BUILD_TYPE = "urn:sevkit:image:1"
_BUILDER = "urn:sevkit:builder"
_ALGORITHMS = {"blob": "sha256", "tree": "sevkitTree", "git": "gitCommit"}


def provenance(subject: Subject) -> bytes:
    """The statement of the image, whichever way it is launched."""
    manifest = subject.manifest
    text = text_of(manifest).encode()
    files = [
        {
            "name": file.path,
            "digest": {"sha256": file.sha256, "sha384": file.sha384, "sha512": file.sha512},
        }
        for file in sorted(manifest.files.values(), key=lambda file: file.path)
    ]
    files.append({"name": MANIFEST, "digest": {"sha256": hashlib.sha256(text).hexdigest()}})
    built = manifest.firmware.build
    patches = [*manifest.kernel.patches, *(built.patches if built else ())]
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": files,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {
                    "recipe": manifest.name,
                    "version": manifest.version,
                    "variables": dict(manifest.build.variables),
                    "toolchain": manifest.build.toolchain,
                },
                "internalParameters": {
                    "sandbox": manifest.build.sandbox,
                    "tools": {**(built.tools if built else {}), **manifest.toolchain},
                },
                "resolvedDependencies": [
                    *map(_source, manifest.sources),
                    *(
                        {"name": patch.name, "digest": {"sha256": patch.sha256}}
                        for patch in patches
                    ),
                ],
            },
            "runDetails": {
                "builder": {"id": _BUILDER},
                "metadata": {"invocationId": manifest.build_id},
            },
        },
    }
    return json.dumps(statement, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _source(source: Source) -> Mapping[str, Any]:
    kind, _, value = source.reference.partition(":")
    row: dict[str, Any] = {"name": source.name, "digest": {_ALGORITHMS[kind]: value}}
    if address := package_url(source):
        row["uri"] = address
    if source.addresses:
        row["downloadLocation"] = source.addresses[0]
    return row
