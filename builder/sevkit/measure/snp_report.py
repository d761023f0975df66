# SPDX-License-Identifier: Apache-2.0
"""An SNP attestation report: what it says, and whether that is what was expected.

SEV Secure Nested Paging Firmware ABI Specification (AMD publication 56860), tables
ATTESTATION_REPORT, guest policy, and signature formats. Does not fetch certificates, and trusts the
one it is given: whether AMD signed it is openssl-verify(1)'s to say.
"""

import hmac
import re
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sevkit.errors import HostError, RecipeError

REPORT_BYTES = 1184
VERSIONS = (2, 3, 4, 5)
"""Those whose fields used here are where this module reads them."""
POLICY_BITS: Mapping[str, int] = {
    "smt": 16,
    "migration-agent": 18,
    "debug": 19,
    "single-socket": 20,
    "cxl": 21,
    "aes-256-xts": 22,
    "rapl-disabled": 23,
    "ciphertext-hiding": 24,
    "page-swap-disabled": 25,
}
_WEAKENING = ("debug", "migration-agent")
_SIGNED_BYTES = 0x2A0
_ECDSA_P384_SHA384 = 1
_NUMBER_BYTES = 72


@dataclass(frozen=True)
class SnpReport:
    """The fields of a report that are looked at. Numbers little endian, digests as bytes."""

    version: int
    guest_svn: int
    policy: int
    vmpl: int
    signature_algo: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    reported_tcb: int
    chip_id: bytes
    signed: bytes
    signature: tuple[int, int]
    """R and S."""

    @property
    def policy_flags(self) -> tuple[str, ...]:
        """The names of the policy's bits that are set."""
        return tuple(name for name, bit in POLICY_BITS.items() if self.policy >> bit & 1)


def parse(data: bytes) -> SnpReport:
    """A report of 1184 bytes, raw or in hexadecimal. Raises `RecipeError` for anything else."""
    if len(data) != REPORT_BYTES:
        text = re.sub(rb"\s", b"", data[: 4 * REPORT_BYTES])
        if not re.fullmatch(rb"[0-9A-Fa-f]{%d}" % (2 * REPORT_BYTES), text):
            raise RecipeError(
                f"not an SNP attestation report: {len(data)} bytes",
                why=f"it has {REPORT_BYTES} bytes, raw or as hexadecimal digits",
            )
        data = bytes.fromhex(text.decode())
    version, guest_svn, policy = struct.unpack_from("<IIQ", data, 0)
    vmpl, algo = struct.unpack_from("<II", data, 0x30)
    return SnpReport(
        version=version,
        guest_svn=guest_svn,
        policy=policy,
        vmpl=vmpl,
        signature_algo=algo,
        report_data=data[0x50:0x90],
        measurement=data[0x90:0xC0],
        host_data=data[0xC0:0xE0],
        id_key_digest=data[0xE0:0x110],
        reported_tcb=struct.unpack_from("<Q", data, 0x180)[0],
        chip_id=data[0x1A0:0x1E0],
        signed=data[:_SIGNED_BYTES],
        signature=(_number(data, _SIGNED_BYTES), _number(data, _SIGNED_BYTES + _NUMBER_BYTES)),
    )


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `passed` is None for what nobody asked to check."""

    name: str
    passed: bool | None
    detail: str


def check(
    report: SnpReport,
    *,
    measurements: Mapping[str, str],
    policy: int,
    vmpl: int = 0,
    report_data: bytes | None = None,
    vcek: Path | None = None,
) -> list[Check]:
    """Everything that can be said of a report.

    `measurements`: what each launch digest (96 hexadecimal digits) is of. `policy` must be the
    report's, bit for bit, and forbid debugging. `vcek` is the file of a certificate, PEM or DER.

    Raises `HostError` without openssl, `RecipeError` for a file that is no certificate.
    """
    found = report.measurement.hex()
    launch = measurements.get(found)
    weak = [name for name in report.policy_flags if name in _WEAKENING]
    checks = [
        Check("version", report.version in VERSIONS, str(report.version)),
        Check("measurement", launch is not None, f"{found}: {launch or 'no launch of this image'}"),
        Check(
            "policy",
            report.policy == policy,
            f"{report.policy:#x}, expected {policy:#x}; allows {_listed(report.policy_flags)}",
        ),
        Check("no debugging", not weak, f"the policy allows {_listed(weak)}"),
        Check("vmpl", report.vmpl == vmpl, f"{report.vmpl}, expected {vmpl}"),
    ]
    if report_data is None:
        detail = f"{report.report_data.hex()}: not checked, --report-data was not given"
        checks.append(Check("report data", None, detail))
    else:
        same = hmac.compare_digest(report.report_data, report_data)
        checks.append(Check("report data", same, report.report_data.hex()))
    if vcek is None:
        checks.append(Check("signature", None, "not checked, --vcek was not given"))
    else:
        checks.append(Check("signature", _is_signed(report, vcek), f"by the key of {vcek}"))
    return checks


def measurements_of(rows: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Digest → the launches that have it, from rows of (what, digest)."""
    made: dict[str, str] = {}
    for what, digest in rows:
        made[digest] = f"{made[digest]}; {what}" if digest in made else what
    return made


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"


def _number(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + _NUMBER_BYTES], "little")


def _is_signed(report: SnpReport, certificate: Path) -> bool:
    """Whether the key of the certificate made the signature: ECDSA P-384 over SHA-384."""
    key = _openssl("x509", "-in", str(certificate), "-noout", "-pubkey")
    if key.returncode != 0:
        raise RecipeError(
            f"{certificate} is not a certificate", why=key.stderr.decode(errors="replace").strip()
        )
    if report.signature_algo != _ECDSA_P384_SHA384:
        return False
    with tempfile.TemporaryDirectory(prefix="sevkit-report-") as folder:
        paths = [Path(folder) / name for name in ("key", "signature", "signed")]
        for path, content in zip(
            paths, (key.stdout, _der(report.signature), report.signed), strict=True
        ):
            path.write_bytes(content)
        public, signature, signed = map(str, paths)
        curve = _openssl("pkey", "-pubin", "-in", public, "-noout", "-text")
        if b"secp384r1" not in curve.stdout:
            raise RecipeError(f"{certificate} holds no P-384 key, which a VCEK has")
        verdict = _openssl("dgst", "-sha384", "-verify", public, "-signature", signature, signed)
    return verdict.returncode == 0


def _der(numbers: tuple[int, int]) -> bytes:
    """ECDSA-Sig-Value of RFC 3279, 2.2.3."""
    parts = b""
    for number in numbers:
        body = number.to_bytes(number.bit_length() // 8 + 1, "big")
        parts += bytes([2, len(body)]) + body
    length = bytes([len(parts)]) if len(parts) < 0x80 else bytes([0x81, len(parts)])
    return b"\x30" + length + parts


def _openssl(*words: str) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(
            ["openssl", *words], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise HostError(
            "openssl is missing, which checks signatures", hint="apt-get install openssl"
        ) from None
