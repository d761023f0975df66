# SPDX-License-Identifier: Apache-2.0
"""Launch digests for those who verify reports: trustee's RVPS, and CoRIM, which is experimental.

Both take every launch that the manifest lists for the mode, or those with the vCPUs and CPU that
were asked for. A digest that any kernel would have is never handed out as one to trust.
"""

import base64
import json

from sevkit.errors import ImageError
from sevkit.exports.cbor import Cbor, Tag, encode
from sevkit.exports.subject import Subject
from sevkit.image.shape import Measurement

_VERSION = "0.1.0"
_SNP_NAME = "snp_launch_measurement"
"""What trustee's default policy for CPUs compares `input.snp.measurement` with."""

_HASHES = {32: 1, 48: 7}
"""Length of a digest → number in IANA's Named Information Hash Algorithm Registry."""
_CORIM, _COMID = 501, 506


def rvps_message(subject: Subject) -> bytes:
    """A message for ``rvps-tool register``: rvps/README.md of trustee, the type ``sample``.

    Each digest is there as hex and as base64, since trustee's verifier of SNP changed from the one
    to the other. Raises `ImageError` for a mode that trustee has no reference value for.
    """
    if subject.mode != "sev-snp":
        raise ImageError(
            f"trustee has no reference value for {subject.mode_name}",
            why="its default policy compares launch digests of SEV-SNP alone",
            hint="--mode sev-snp",
        )
    digests = [bytes.fromhex(row.digest) for row in subject.trusted()]
    forms = [form for raw in digests for form in (raw.hex(), base64.b64encode(raw).decode())]
    payload = json.dumps({_SNP_NAME: forms}).encode()
    message = {
        "version": _VERSION,
        "type": "sample",
        "payload": base64.b64encode(payload).decode(),
    }
    return json.dumps(message, indent=2).encode() + b"\n"


def corim(subject: Subject) -> bytes:
    """An unsigned CoRIM with one CoMID of reference values (draft-ietf-rats-corim).

    Experimental: the draft is none yet that lasts. Raises `ImageError` without a mode.
    """
    if subject.mode is None:
        raise ImageError("nothing is measured without SEV", hint="--mode sev-snp")
    claims: list[Cbor] = [
        {
            0: _named(row),
            1: {2: [[_HASHES[len(row.digest) // 2], bytes.fromhex(row.digest)]]},
        }
        for row in subject.trusted()
    ]
    environment: Cbor = {0: {1: "AMD", 2: subject.mode}}
    comid: Cbor = {
        1: {0: subject.name},
        4: {0: [[environment, claims]]},
    }
    return encode(Tag(_CORIM, {0: subject.name, 1: [Tag(_COMID, encode(comid))]}))


def _named(row: Measurement) -> str:
    features = "" if row.guest_features is None else f"{row.guest_features:#x}"
    words = [row.vmm, row.init, row.cpu, row.vcpus and f"{row.vcpus} vCPUs", features]
    return "/".join(["launch", *(str(word) for word in words if word)])
