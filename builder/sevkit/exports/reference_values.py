# SPDX-License-Identifier: Apache-2.0
"""Launch digests for those who verify reports: trustee's RVPS, and CoRIM, which is experimental.

Both take every SNP launch that the manifest lists, or those with the vCPUs and CPU that were asked
for: no report has the digest of another mode. A digest that another kernel could have is never
handed out as one to trust.
"""

import base64
import json
from collections.abc import Sequence

from sevkit.errors import ImageError
from sevkit.exports.cbor import Cbor, Tag, encode
from sevkit.exports.subject import Subject
from sevkit.guest.qemu import POLICIES

_VERSION = "0.1.0"

_SNP_PROFILE = "tag:amd.com,2024:snp-corim-profile"
_SNP_BY_CHIP = bytes.fromhex("2b060104019c780301")
"""The OID 1.3.6.1.4.1.3704.3.1, a report signed by its chip's key, as RFC 9090 has it."""
_MEASUREMENT = 641
"""Key of the field MEASUREMENT of a report."""
_SHA384 = 7
"""Number in IANA's Named Information Hash Algorithm Registry."""
_URI, _OID, _CORIM, _COMID, _BYTES = 32, 111, 501, 506, 560
"""Tags: RFC 8949, RFC 9090, draft-ietf-rats-corim."""


def rvps_message(subject: Subject) -> bytes:
    """A message for ``rvps-tool register``: rvps/README.md of trustee, the type ``sample``.

    The names are those of trustee's default policy for CPUs, ear_default_policy_cpu.rego: what it
    compares ``measurement`` of a report with, and those parts of the guest policy that sevkit
    sets. Each digest is there as hex and as base64, since trustee's verifier of SNP changed from
    one to the other. Raises `ImageError` for a mode that trustee has no reference value for.
    """
    digests = _snp_digests(subject, "trustee has no reference value for")
    policy = POLICIES["sev-snp"]
    payload = {
        "snp_launch_measurement": [
            form for raw in digests for form in (raw.hex(), base64.b64encode(raw).decode())
        ],
        "snp_guest_abi_major": policy >> 8 & 0xFF,
        "snp_guest_abi_minor": policy & 0xFF,
        "snp_smt_allowed": bool(policy >> 16 & 1),
        "snp_single_socket": bool(policy >> 20 & 1),
    }
    message = {
        "version": _VERSION,
        "type": "sample",
        "payload": base64.b64encode(json.dumps(payload).encode()).decode(),
    }
    return json.dumps(message, indent=2).encode() + b"\n"


def corim(subject: Subject) -> bytes:
    """An unsigned CoRIM (draft-ietf-rats-corim) with one CoMID of reference values, in the profile
    that AMD's reports have (draft-deeglaze-amd-sev-snp-corim-profile).

    Experimental: the drafts still differ, and it is written for the one verifier there is, scheme
    sevsnp of Veraison's services. That looks a report up by its digest, in the place of the
    instance, and wants every measurement of a triple to match: so each launch is a triple.

    Raises `ImageError` for a mode whose digest no report has.
    """
    triples: list[Cbor] = [
        [
            {0: {0: Tag(_OID, _SNP_BY_CHIP)}, 1: Tag(_BYTES, digest)},
            [{0: _MEASUREMENT, 1: {2: [[_SHA384, digest]]}}],
        ]
        for digest in _snp_digests(subject, "no report has the digest of a launch with")
    ]
    comid: Cbor = {1: {0: subject.name}, 4: {0: triples}}
    manifest: Cbor = {
        0: subject.name,
        1: [Tag(_COMID, encode(comid))],
        3: Tag(_URI, _SNP_PROFILE),
    }
    return encode(Tag(_CORIM, manifest))


def _snp_digests(subject: Subject, problem: str) -> Sequence[bytes]:
    """Every digest once, in the manifest's order."""
    if subject.mode != "sev-snp":
        raise ImageError(
            f"{problem} {subject.mode_name}",
            why="only SEV-SNP puts the launch digest into attestation reports",
            hint="--mode sev-snp",
        )
    return [bytes.fromhex(digest) for digest in dict.fromkeys(r.digest for r in subject.trusted())]
