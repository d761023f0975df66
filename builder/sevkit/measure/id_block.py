# SPDX-License-Identifier: Apache-2.0
"""The ID block of an SNP launch: a digest that the owner of a key allows, signed.

The secure processor refuses a launch with another digest or policy, and puts the digests of the
keys into every attestation report. Signatures are deterministic (RFC 6979), so the same keys and
digest are the same bytes. A private key is read, used, and never written or shown.

Layouts: SEV-SNP Firmware ABI (AMD 56860), SNP_LAUNCH_FINISH: ID block and ID authentication
information; its chapter on digital signatures: ECDSA P-384 with SHA-384, numbers little-endian.
QEMU's sev-snp-guest takes both in base64, as id-block and id-auth, with author-key-enabled.
"""

import base64
import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sevkit.errors import RecipeError
from sevkit.measure.snp_report import POLICY_BITS
from sevkit.opening import open_at_once

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

POLICY = 0x30000
"""Of a guest on any host, with SMT, without debugging (ABI: guest policy); `sevkit boot`'s."""

_POLICY_BITS = 0xFFFF | 1 << 17 | sum(1 << bit for bit in POLICY_BITS.values())
"""The ABI version that is asked for, the bit that must be one, and those with a meaning."""

KEY_LIMIT_BYTES = 1 << 16
_SSH_HEAD = b"-----BEGIN OPENSSH PRIVATE KEY-----"

_ID_BYTES = 16
_BLOCK = struct.Struct("<48s16s16sIIQ")
_BLOCK_VERSION = 1
_ECDSA_P384_SHA384 = 1
_CURVE_P384 = 2
_NUMBER_BYTES = 72
_SIGNATURE_BYTES = 512
_PUBLIC_KEY_BYTES = 1028
_AUTH = struct.Struct(
    f"<II56s{_SIGNATURE_BYTES}s{_PUBLIC_KEY_BYTES}s60s{_SIGNATURE_BYTES}s{_PUBLIC_KEY_BYTES}s892s"
)


@dataclass(frozen=True)
class IdBlock:
    """An ID block with its authentication, and what a report will say of the keys."""

    block: bytes
    """96 bytes."""
    auth: bytes
    """4096 bytes."""
    id_key_digest: str
    """SHA-384 of the public key as in `auth`, hex; ID_KEY_DIGEST of a report."""
    author_key_digest: str | None

    def record(self) -> dict[str, Any]:
        """What QEMU takes, and the digests, as plain data for JSON."""
        return {
            "id_block": base64.b64encode(self.block).decode(),
            "id_auth": base64.b64encode(self.auth).decode(),
            "author_key_enabled": self.author_key_digest is not None,
            "id_key_digest": self.id_key_digest,
            "author_key_digest": self.author_key_digest,
        }


def id_block(
    digest: bytes,
    id_key: Path,
    author_key: Path | None = None,
    *,
    policy: int = POLICY,
    guest_svn: int = 0,
    family_id: bytes = bytes(_ID_BYTES),
    image_id: bytes = bytes(_ID_BYTES),
) -> IdBlock:
    """The block that allows a launch with `digest` (48 bytes) under `policy`, signed.

    `guest_svn` (32 bits), `family_id` and `image_id` (16 bytes) are the owner's to choose and come
    back in every report. `id_key` signs the block, `author_key` the public half of `id_key`: files
    of P-384 keys, in PEM or as OpenSSH writes them, without a passphrase. Raises `RecipeError` for
    a file that is something else, and for a policy that no guest can have.
    """
    if (len(digest), len(family_id), len(image_id)) != (48, _ID_BYTES, _ID_BYTES):
        raise ValueError("a launch digest has 48 bytes, a family or image ID 16")
    if problem := policy_problem(policy):
        raise RecipeError(f"guest policy {policy:#x} {problem}", hint=f"{POLICY:#x} is the default")
    if not 0 <= guest_svn < 1 << 32:
        raise RecipeError(f"a guest SVN of {guest_svn} does not fit 32 bits")
    signer = _read_key(id_key)
    author = None if author_key is None else _read_key(author_key)
    block = _BLOCK.pack(digest, family_id, image_id, _BLOCK_VERSION, guest_svn, policy)
    public = _public_key(signer)
    author_public = b"" if author is None else _public_key(author)
    auth = _AUTH.pack(
        _ECDSA_P384_SHA384,
        0 if author is None else _ECDSA_P384_SHA384,
        b"",
        _signature(signer, block),
        public,
        b"",
        b"" if author is None else _signature(author, public),
        author_public,
        b"",
    )
    return IdBlock(
        block=block,
        auth=auth,
        id_key_digest=hashlib.sha384(public).hexdigest(),
        author_key_digest=None if author is None else hashlib.sha384(author_public).hexdigest(),
    )


def policy_problem(policy: int) -> str | None:
    """Why no SNP guest has this policy (ABI: guest policy); None when one can."""
    if not policy >> 17 & 1:
        return "has bit 17 clear, which must be one"
    if policy & ~_POLICY_BITS:
        return f"sets the reserved bits {policy & ~_POLICY_BITS & (1 << 64) - 1:#x}"
    return None


def _read_key(path: Path) -> "EllipticCurvePrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import (
        load_pem_private_key,
        load_ssh_private_key,
    )

    hint = "make one: openssl ecparam -name secp384r1 -genkey -noout -out FILE"
    try:
        with open_at_once(path) as file:
            text = file.read(KEY_LIMIT_BYTES)
    except OSError as error:
        raise RecipeError(f"{path} can't be read", why=str(error.strerror)) from error
    try:
        is_ssh = text.startswith(_SSH_HEAD)
        key: object = (load_ssh_private_key if is_ssh else load_pem_private_key)(text, None)
    except TypeError as error:
        raise RecipeError(
            f"{path} is a key with a passphrase",
            hint="decrypt a copy of it: "
            + ("ssh-keygen -p -N '' -f COPY" if is_ssh else "openssl pkey -in FILE -out COPY"),
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        kind = "a public key or certificate" if b"-----BEGIN " in text else "no key"
        what = kind if b"PRIVATE KEY-----" not in text else "a damaged key"
        raise RecipeError(f"{path} is {what}, not a private key in PEM", hint=hint) from error
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        found = key.curve.name if isinstance(key, EllipticCurvePrivateKey) else type(key).__name__
        raise RecipeError(
            f"{path} is a key of another kind: {found.removeprefix('_')}",
            why="the secure processor checks ECDSA on the curve P-384 and nothing else",
            hint=hint,
        )
    return key


def _public_key(key: "EllipticCurvePrivateKey") -> bytes:
    numbers = key.public_key().public_numbers()
    point = _number(numbers.x) + _number(numbers.y)
    return (struct.pack("<I", _CURVE_P384) + point).ljust(_PUBLIC_KEY_BYTES, b"\0")


def _signature(key: "EllipticCurvePrivateKey", data: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA384

    r, s = decode_dss_signature(key.sign(data, ECDSA(SHA384(), deterministic_signing=True)))
    return (_number(r) + _number(s)).ljust(_SIGNATURE_BYTES, b"\0")


def _number(value: int) -> bytes:
    return value.to_bytes(_NUMBER_BYTES, "little")
