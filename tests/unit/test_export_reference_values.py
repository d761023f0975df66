# SPDX-License-Identifier: Apache-2.0
"""Reference values: what they say, that verifiers' rules take them, and what is not handed out."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from export_samples import changed
from regopy import Interpreter

from sevkit.errors import ImageError
from sevkit.exports import exported, subject_of
from sevkit.exports.cbor import Tag, encode
from sevkit.image.manifest import load


def test_trustee_gets_the_digests_of_every_launch_as_hex_and_base64(hashed: Path) -> None:
    message = json.loads(exported(subject_of(hashed), "rvps"))
    assert (message["version"], message["type"]) == ("0.1.0", "sample")
    values = json.loads(base64.b64decode(message["payload"]))["snp_launch_measurement"]
    rows = [row.digest for row in load(hashed).measurements if row.mode == "sev-snp"]
    assert len(rows) == 2
    assert [one for one in values if len(one) == 96] == rows
    assert {base64.b64decode(one).hex() for one in values if len(one) == 64} == set(rows)
    one = json.loads(exported(subject_of(hashed, vcpus=2), "rvps"))
    assert len(json.loads(base64.b64decode(one["payload"]))["snp_launch_measurement"]) == 2


@pytest.mark.parametrize("format_name", ["rvps", "corim"])
def test_a_digest_that_every_kernel_would_have_is_not_handed_out(
    format_name: str, plain: Path, hashed: Path
) -> None:
    assert exported(subject_of(hashed), format_name)
    with pytest.raises(ImageError, match="every kernel would have them"):
        exported(subject_of(plain), format_name)


@pytest.mark.parametrize(
    ("verifies", "word"), [(None, "nobody has shown"), (False, "is known to start")]
)
def test_a_digest_of_firmware_that_is_not_shown_to_check_is_not_handed_out(
    verifies: bool | None, word: str, hashed: Path, tmp_path: Path
) -> None:
    image = changed(hashed, tmp_path / "unchecked", firmware={"verifies_kernel_hashes": verifies})
    for format_name in ("rvps", "corim"):
        assert exported(subject_of(hashed), format_name)
        with pytest.raises(ImageError, match="vouch for no kernel") as caught:
            exported(subject_of(image), format_name)
        assert word in caught.value.why
    [warning] = subject_of(image).warnings()
    assert word in warning
    assert warning in load(image).remarks()
    assert subject_of(hashed).warnings() == load(hashed).remarks() == []


def policy_of_trustee(fields: dict[str, str]) -> str:
    """Rules as trustee's default policy has them for SNP, where a claim is at one of `fields`."""
    wanted = "\n".join(
        f"    input.snp.{place} == data.reference.{name}"
        for name, place in fields.items()
        if name != "snp_launch_measurement"
    )
    return f"""package policy
import rego.v1
default executables := 33
default configuration := 36
executables := 3 if {{
    input.snp.{fields["snp_launch_measurement"]} in data.reference.snp_launch_measurement
}}
configuration := 2 if {{
{wanted}
}}
"""


NESTED = {
    "snp_launch_measurement": "evidence.measurement",
    "snp_guest_abi_major": "evidence.policy.abi_major",
    "snp_guest_abi_minor": "evidence.policy.abi_minor",
    "snp_smt_allowed": "evidence.policy.smt_allowed",
    "snp_single_socket": "evidence.policy.single_socket_required",
}
"""trustee's ear_default_policy_cpu.rego at 238497d47684: claims are the fields of a report."""
FLAT = {
    "snp_launch_measurement": "measurement",
    "snp_guest_abi_major": "policy_abi_major",
    "snp_guest_abi_minor": "policy_abi_minor",
    "snp_smt_allowed": "policy_smt_allowed",
    "snp_single_socket": "policy_single_socket",
}
"""The same at ea8cad283fa0, before that."""


def appraised(fields: dict[str, str], references: dict[str, Any], claim: dict[str, Any]) -> Any:
    """What the policy says of a report whose fields are `claim`, by the names of its references."""
    snp: dict[str, Any] = {}
    for name, value in claim.items():
        *folders, last = fields[name].split(".")
        place = snp
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    rego = Interpreter()
    rego.add_module("policy.rego", policy_of_trustee(fields))
    rego.add_data({"reference": references})
    rego.set_input({"snp": snp})
    [found] = json.loads(str(rego.query("data.policy")))["expressions"]
    return found["executables"], found["configuration"]


@pytest.mark.parametrize("fields", [NESTED, FLAT], ids=["nested", "flat"])
def test_the_policy_of_trustee_affirms_the_launch_and_no_other(
    fields: dict[str, str], hashed: Path
) -> None:
    message = json.loads(exported(subject_of(hashed), "rvps"))
    references = json.loads(base64.b64decode(message["payload"]))
    assert references.keys() == fields.keys()
    for row in load(hashed).measurements:
        good = {
            "snp_launch_measurement": row.digest,
            "snp_guest_abi_major": 0,
            "snp_guest_abi_minor": 0,
            "snp_smt_allowed": True,
            "snp_single_socket": False,
        }
        known = 3 if row.mode == "sev-snp" else 33
        assert appraised(fields, references, good) == (known, 2)
        flipped = f"{int(row.digest, 16) ^ 1:0{len(row.digest)}x}"
        other = good | {"snp_launch_measurement": flipped}
        assert appraised(fields, references, other) == (33, 2)
        for name, value in (("snp_guest_abi_minor", 51), ("snp_smt_allowed", False)):
            assert appraised(fields, references, good | {name: value}) == (known, 36)


READ_CORIM = """
import cbor2, json, sys
from cbor2 import CBORTag

def plain(value):
    if isinstance(value, CBORTag):
        return {f"#{value.tag}": plain(value.value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value

content = open(sys.argv[1], "rb").read()
corim = cbor2.loads(content)
assert cbor2.dumps(corim, canonical=True) == content
corim.value[1] = [CBORTag(tag.tag, cbor2.loads(tag.value)) for tag in corim.value[1]]
print(json.dumps(plain(corim)))
"""
"""For the system's python3-cbor2: bytes as hex, a tag as an object with its number."""


def test_another_decoder_finds_what_the_profile_wants_and_a_triple_for_each_launch(
    hashed: Path, tmp_path: Path
) -> None:
    """draft-ietf-rats-corim; scheme/sevsnp/corim.go of Veraison's services and the example in its
    test/corim at e8b6af7c5a03: a class that is an OID alone, bytes for the instance, which is the
    digest, and a number for the key of each measurement."""
    path = tmp_path / "corim"
    path.write_bytes(exported(subject_of(hashed), "corim"))
    answer = subprocess.run(
        ["/usr/bin/python3", "-c", READ_CORIM, path], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    name = subject_of(hashed).name
    rows = [row.digest for row in load(hashed).measurements if row.mode == "sev-snp"]
    assert len(set(rows)) == 2
    triples = [
        [
            {"0": {"0": {"#111": "2b060104019c780301"}}, "1": {"#560": digest}},
            [{"0": 641, "1": {"2": [[7, digest]]}}],
        ]
        for digest in rows
    ]
    comid = {"1": {"0": name}, "4": {"0": triples}}
    profile = {"#32": "tag:amd.com,2024:snp-corim-profile"}
    assert json.loads(answer.stdout) == {
        "#501": {"0": name, "1": [{"#506": comid}], "3": profile},
    }
    oid = bytes.fromhex("2b060104019c780301")
    numbers = [oid[0] // 40, oid[0] % 40, *oid[1:5], (oid[5] & 127) << 7 | oid[6], *oid[7:]]
    assert ".".join(map(str, numbers)) == "1.3.6.1.4.1.3704.3.1"


@pytest.mark.parametrize("mode", ["sev", "sev-es", "none"])
@pytest.mark.parametrize("format_name", ["rvps", "corim"])
def test_only_snp_has_reference_values(format_name: str, mode: str, hashed: Path) -> None:
    assert exported(subject_of(hashed, mode="sev-snp"), format_name)
    with pytest.raises(ImageError, match=mode) as caught:
        exported(subject_of(hashed, mode=mode), format_name)
    assert caught.value.hint == "--mode sev-snp"


@pytest.mark.parametrize(
    ("value", "hexed"),
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (100, "1864"),
        (1000, "1903e8"),
        (1000000, "1a000f4240"),
        (18446744073709551615, "1bffffffffffffffff"),
        (b"\1\2\3\4", "4401020304"),
        ("\u00fc", "62c3bc"),
        ([1, [2, 3]], "8201820203"),
        ({1: 2, 3: 4}, "a201020304"),
        ({"b": 1, 10: 2}, "a20a02616201"),
        (Tag(32, "http://www.example.com"), "d82076687474703a2f2f7777772e6578616d706c652e636f6d"),
    ],
)
def test_cbor_is_as_the_examples_of_its_rfc_say(value: Any, hexed: str) -> None:
    assert encode(value).hex() == hexed  # RFC 8949, appendix A
