# SPDX-License-Identifier: Apache-2.0
"""ID blocks: laid out as the firmware ABI says, signed as RFC 6979 says, and keys that are none."""

import base64
import hashlib
import hmac
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from sevkit.errors import RecipeError
from sevkit.measure.id_block import IdBlock, id_block

SECRET = int(
    "6B9D3DAD2E1B8C1C05B19875B6659F4DE23C3B667BF297BA9AA47740787137D8"
    "96D5724E4C70A825F872C9EA60D2EDF5",
    16,
)
"""The key of RFC 6979, A.2.6."""
ORDER = int(
    "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF"
    "581A0DB248B0A77AECEC196ACCC52973",
    16,
)
DIGEST = base64.b64decode("B28FLQi9p6cAqipgjFyqawDrrSl7bWioWkWx5mmlWLZ+G5HShKMB/mPE+gdQRn7t")


def write_key(path: Path, key: Any, password: bytes | None = None) -> Path:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    pkcs8 = serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, encryption))
    return path


@pytest.fixture
def id_key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "id.pem", ec.derive_private_key(SECRET, ec.SECP384R1()))


@pytest.fixture
def author_key(tmp_path: Path) -> Path:
    return write_key(tmp_path / "author.pem", ec.derive_private_key(SECRET + 1, ec.SECP384R1()))


def rfc6979(message: bytes) -> tuple[int, int]:
    """The signature of `message` with SECRET, P-384 and SHA-384: RFC 6979, 3.2."""
    hashed = hashlib.sha384(message).digest()
    reduced = (int.from_bytes(hashed) % ORDER).to_bytes(48)
    value, key = b"\1" * 48, bytes(48)
    for byte in (b"\0", b"\1"):
        key = hmac.digest(key, value + byte + SECRET.to_bytes(48) + reduced, "sha384")
        value = hmac.digest(key, value, "sha384")
    value = hmac.digest(key, value, "sha384")
    nonce = int.from_bytes(value)
    assert 0 < nonce < ORDER
    point = ec.derive_private_key(nonce, ec.SECP384R1()).public_key().public_numbers()
    r = point.x % ORDER
    return r, pow(nonce, -1, ORDER) * (int.from_bytes(hashed) + r * SECRET) % ORDER


def signature(auth: bytes, offset: int) -> tuple[int, int]:
    r, s = auth[offset : offset + 72], auth[offset + 72 : offset + 144]
    assert not any(auth[offset + 144 : offset + 512])
    return int.from_bytes(r, "little"), int.from_bytes(s, "little")


def public_key(auth: bytes, offset: int) -> ec.EllipticCurvePublicKey:
    assert struct.unpack_from("<I", auth, offset) == (2,)
    x, y = (int.from_bytes(auth[offset + at :][:72], "little") for at in (4, 76))
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()


def test_the_signature_of_the_rfc_is_reproduced() -> None:
    r, s = rfc6979(b"sample")
    assert f"{r:X}".startswith("94EDBB92A5ECB8AAD4736E56C691916B3F88140666CE9FA7")
    assert f"{s:X}".startswith("99EF4AEB15F178CEA1FE40DB2603138F130E740A19624526")


def test_the_block_is_the_published_one(id_key: Path) -> None:
    """tests/test_id_block.py of virtee/sev-snp-measure (Apache-2.0)."""
    made = id_block(DIGEST, id_key).record()
    assert made["id_block"] == (
        "B28FLQi9p6cAqipgjFyqawDrrSl7bWioWkWx5mmlWLZ+G5HShKMB/mPE+gdQRn7tAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        "AAAAAAAAAAABAAAAAAAAAAAAAwAAAAAA"
    )


def test_both_signatures_hold_and_lie_where_the_firmware_looks(
    id_key: Path, author_key: Path
) -> None:
    made = id_block(DIGEST, id_key, author_key)
    assert (len(made.block), len(made.auth)) == (96, 4096)
    assert struct.unpack_from("<II", made.auth) == (1, 1)
    assert signature(made.auth, 0x40) == rfc6979(made.block)
    algorithm = ec.ECDSA(SHA384())
    for at, key, signed in (
        (0x40, 0x240, made.block),
        (0x680, 0x880, made.auth[0x240 : 0x240 + 1028]),
    ):
        der = encode_dss_signature(*signature(made.auth, at))
        public_key(made.auth, key).verify(der, signed, algorithm)
    assert made.id_key_digest == hashlib.sha384(made.auth[0x240:][:1028]).hexdigest()
    assert made.author_key_digest == hashlib.sha384(made.auth[0x880:][:1028]).hexdigest()
    assert id_block(DIGEST, id_key, author_key) == made


def test_without_an_author_its_fields_are_empty(id_key: Path) -> None:
    made = id_block(DIGEST, id_key)
    assert struct.unpack_from("<II", made.auth) == (1, 0)
    assert not any(made.auth[0x680:])
    assert made.record()["author_key_enabled"] is False


def test_another_policy_digest_or_key_is_another_signature(id_key: Path, author_key: Path) -> None:
    made: list[IdBlock] = [
        id_block(DIGEST, id_key),
        id_block(DIGEST, id_key, policy=0x30001),
        id_block(bytes(48), id_key),
        id_block(DIGEST, author_key),
    ]
    assert len({each.auth for each in made}) == 4


def test_what_the_owner_states_lies_where_the_firmware_looks(id_key: Path) -> None:
    family, image = bytes(range(16)), bytes(range(16, 32))
    made = id_block(DIGEST, id_key, policy=0x2B0037, guest_svn=7, family_id=family, image_id=image)
    assert made.block[48:64] == family
    assert made.block[64:80] == image
    assert struct.unpack_from("<IIQ", made.block, 80) == (1, 7, 0x2B0037)
    with pytest.raises(ValueError, match="family or image ID"):
        id_block(DIGEST, id_key, family_id=b"short")
    for svn in (-1, 1 << 32):
        with pytest.raises(RecipeError, match="does not fit 32 bits"):
            id_block(DIGEST, id_key, guest_svn=svn)


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (0, "bit 17 clear"),
        (0x10000, "bit 17 clear"),
        (0x30000 | 1 << 26, "the reserved bits 0x4000000"),
        ((1 << 64) - 1, "the reserved bits"),
        (1 << 64 | 0x30000, "the reserved bits"),
        (-1, "the reserved bits"),
    ],
)
def test_a_policy_that_no_guest_can_have_is_refused(id_key: Path, policy: int, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        id_block(DIGEST, id_key, policy=policy)
    for good in (0x20000, 0x30000, 0x3FFFFFF):
        assert id_block(DIGEST, id_key, policy=good)


def test_no_private_key_leaves_its_file(id_key: Path) -> None:
    made = id_block(DIGEST, id_key)
    for order in ("little", "big"):
        assert SECRET.to_bytes(48, order) not in made.block + made.auth  # type: ignore[arg-type]
    assert f"{SECRET:x}" not in repr(made)


def test_what_is_no_key_for_this_is_refused_with_one_clear_error(
    tmp_path: Path, id_key: Path
) -> None:
    good = ec.derive_private_key(SECRET, ec.SECP384R1())
    public = good.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    path = tmp_path / "key.pem"
    cases: dict[str, Any] = {
        "secp256r1": ec.derive_private_key(7, ec.SECP256R1()),
        "RSAPrivateKey": rsa.generate_private_key(65537, 1024),
        "Ed25519PrivateKey": ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)),
    }
    for why, key in cases.items():
        with pytest.raises(RecipeError, match=f"key of another kind: {why}"):
            id_block(DIGEST, write_key(path, key))
    with pytest.raises(RecipeError, match="with a passphrase"):
        id_block(DIGEST, write_key(path, good, b"secret"))
    for content, why in (
        (b"", "is no key"),
        (b"\x7fELF" * 99, "is no key"),
        (public, "is a public key or certificate"),
        (id_key.read_bytes()[:120], "is a damaged key"),
    ):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=why):
            id_block(DIGEST, path)
    for place in (tmp_path, tmp_path / "none.pem"):
        with pytest.raises(RecipeError, match="can't be read"):
            id_block(DIGEST, place)
    assert id_block(DIGEST, id_key)


def test_a_key_of_ssh_keygen_signs_as_the_same_key_in_pem(id_key: Path, tmp_path: Path) -> None:
    path = tmp_path / "id_ecdsa"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", path], check=True
    )
    made = id_block(DIGEST, path)
    convert = ["ssh-keygen", "-q", "-p", "-m", "PKCS8", "-N", "", "-f", path]
    subprocess.run(convert, check=True, stdout=subprocess.DEVNULL)
    assert b"BEGIN PRIVATE KEY" in path.read_bytes()
    assert id_block(DIGEST, path) == made
    assert id_block(DIGEST, id_key) != made


def test_a_key_of_ssh_keygen_that_does_not_serve_is_told_why(tmp_path: Path) -> None:
    path = tmp_path / "id"
    for options, why in (
        (["-t", "ecdsa", "-b", "384", "-N", "secret"], "with a passphrase.*ssh-keygen -p -N ''"),
        (["-t", "ecdsa", "-b", "256", "-N", ""], "key of another kind: secp256r1"),
        (["-t", "ed25519", "-N", ""], "key of another kind: Ed25519PrivateKey"),
    ):
        path.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", *options, "-f", path], check=True, input=b"y\n")
        with pytest.raises(RecipeError) as caught:
            id_block(DIGEST, path)
        assert re.search(why, str(caught.value), re.DOTALL)
    path.write_bytes(path.read_bytes()[:120])
    with pytest.raises(RecipeError, match="is a damaged key"):
        id_block(DIGEST, path)
