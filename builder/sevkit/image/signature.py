# SPDX-License-Identifier: Apache-2.0
"""ssh signatures of an image: over its manifest, whose digests cover every other file.

The signature lies beside the manifest and changes no other byte. Made and checked by ssh-keygen(1)
(-Y sign, verify; the format is PROTOCOL.sshsig of OpenSSH), so that a key on a token, in an agent
or on another machine serves as well; holds no key and no cryptography of its own.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sevkit.disk import write_whole
from sevkit.errors import HostError, ImageError, RecipeError
from sevkit.image.manifest import MANIFEST, SIGNATURE, text_of
from sevkit.image.published import published
from sevkit.opening import open_at_once

NAMESPACE = "sevkit-manifest"
"""What a signature is for (ssh-keygen -n): one made for mail or git says nothing of an image."""

_LIMIT_BYTES = 64 << 10
_KEY_TYPE = re.compile(r"(ssh-(ed25519|rsa|dss)|ecdsa-sha2-\S+|sk-\S+@openssh\.com) ")
_ANYBODY = "signer"


def message(folder: Path) -> bytes:
    """What is signed: the manifest's bytes. Raises `ImageError` for an image that was changed."""
    return text_of(published(folder)).encode()


def sign(folder: Path, key: Path) -> None:
    """Sign the image with `key`: a private key, or a public one whose private half an agent holds.

    Asks for a passphrase on the terminal. Raises `ImageError` for an image that was changed and
    `RecipeError` when ssh-keygen does not sign.
    """
    with tempfile.TemporaryDirectory(prefix="sevkit-sign-") as name:
        draft = Path(name) / MANIFEST
        draft.write_bytes(message(folder))
        done = _keygen(["-Y", "sign", "-n", NAMESPACE, "-f", key, draft])
        if done.returncode != 0:
            raise RecipeError(f"{key} can't sign", why=_said(done))
        _place(folder, draft.with_name(f"{MANIFEST}.sig").read_bytes())


def attach(folder: Path, signature: Path) -> None:
    """Take over a signature that was made elsewhere, of this manifest and for this purpose.

    Whether its key is to be trusted is for `check` to say. Raises `ImageError`.
    """
    data = _read(signature)
    with tempfile.TemporaryDirectory(prefix="sevkit-sign-") as name:
        (Path(name) / "sig").write_bytes(data)
        options: list[str | Path] = ["-n", NAMESPACE, "-s", Path(name) / "sig"]
        done = _keygen(["-Y", "check-novalidate", *options], message(folder))
    if done.returncode != 0:
        raise ImageError(
            f"{signature} is no signature of this image",
            why=_said(done),
            hint=f"sign what --export wrote: ssh-keygen -Y sign -n {NAMESPACE} -f KEY FILE",
        )
    _place(folder, data)


def check(folder: Path, keys: Path, identity: str | None = None) -> str:
    """Whose signature the image has, as ssh-keygen names signer and key.

    `keys` holds public keys, a line each, all of them trusted; or is an allowed-signers file
    (ssh-keygen(1)), and `identity` one of its principals (default: any whose key it is). Raises
    `ImageError` when there is no signature or none of theirs, `RecipeError` for a bad `keys`.
    """
    if not (folder / SIGNATURE).exists():
        raise ImageError(f"{folder} is not signed", hint="sevkit sign IMAGE --key FILE")
    signed, data = message(folder), _read(folder / SIGNATURE)
    with tempfile.TemporaryDirectory(prefix="sevkit-sign-") as name:
        allowed, signature = Path(name) / "allowed", Path(name) / "sig"
        is_list = _write_allowed(keys, allowed)
        signature.write_bytes(data)
        if identity is None:
            identity = _principal(allowed, signature) if is_list else _ANYBODY
        options: list[str | Path] = [
            "-f",
            allowed,
            "-I",
            identity,
            "-n",
            NAMESPACE,
            "-s",
            signature,
        ]
        done = _keygen(["-Y", "verify", *options], signed)
    if done.returncode != 0:
        raise ImageError(
            f"{folder} is not signed with a key of {keys}",
            why=_said(done) or "the signature is of another manifest, or by another key",
        )
    return done.stdout.decode("utf-8", "replace").strip()


def _write_allowed(keys: Path, allowed: Path) -> bool:
    """Write `keys` as an allowed-signers file; whether it was one already."""
    try:
        text = keys.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{keys} can't be read as public keys", why=str(error)) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("#")]
    if "PRIVATE KEY" in text or not lines:
        raise RecipeError(
            f"{keys} holds no public key", hint="name the .pub file, or an allowed-signers file"
        )
    is_list = not _KEY_TYPE.match(lines[0])
    if is_list:
        allowed.write_text(text, encoding="utf-8")
    else:
        rows = [f'{_ANYBODY} namespaces="{NAMESPACE}" {line}\n' for line in lines]
        allowed.write_text("".join(rows), encoding="utf-8")
    return is_list


def _principal(allowed: Path, signature: Path) -> str:
    done = _keygen(["-Y", "find-principals", "-f", allowed, "-s", signature])
    found = done.stdout.decode("utf-8", "replace").split("\n")[0].strip()
    if done.returncode != 0 or not found:
        raise ImageError("the image is signed by nobody of the allowed signers", why=_said(done))
    return found


def _read(signature: Path) -> bytes:
    """A signature's bytes. Raises `ImageError` for a file that can't be one."""
    try:
        with open_at_once(signature) as file:
            data = file.read(_LIMIT_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{signature} can't be read", why=str(error.strerror)) from error
    if not data.startswith(b"-----BEGIN SSH SIGNATURE-----") or len(data) > _LIMIT_BYTES:
        raise ImageError(f"{signature} is no ssh signature")
    return data


def _place(folder: Path, data: bytes) -> None:
    try:
        write_whole(folder / SIGNATURE, data, mode=0o444, drafts=folder.parent)
    except OSError as error:
        raise ImageError(f"{folder}/{SIGNATURE}: {error.strerror}") from error


def _keygen(
    arguments: Sequence[str | Path], stdin: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise HostError("ssh-keygen is missing", hint="apt-get install openssh-client")
    return subprocess.run(
        [program, *arguments],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = (done.stderr + done.stdout).decode("utf-8", "replace").splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip())[-400:]
