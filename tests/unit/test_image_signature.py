# SPDX-License-Identifier: Apache-2.0
"""Signatures of images, made and checked with the real ssh-keygen (docs/supply-chain.md)."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from image_samples import image

from sevkit.errors import ImageError, RecipeError
from sevkit.image.manifest import SIGNATURE, verify
from sevkit.image.output import publish
from sevkit.image.signature import NAMESPACE, attach, check, message, sign

Key = Callable[..., Path]
Sevkit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def make_key(tmp_path: Path) -> Key:
    def make(name: str = "key", kind: str = "ed25519", passphrase: str = "") -> Path:
        path = tmp_path / name
        words = ["-q", "-t", kind, "-N", passphrase, "-C", name, "-f", str(path)]
        subprocess.run(["ssh-keygen", *words], check=True)
        return path

    return make


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return image(tmp_path)


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def elsewhere(key: Path, data: bytes, namespace: str = NAMESPACE) -> Path:
    """Sign with plain ssh-keygen, as on a machine without sevkit."""
    file = key.with_name("to-sign")
    file.write_bytes(data)
    file.with_name("to-sign.sig").unlink(missing_ok=True)
    words = ["-q", "-Y", "sign", "-n", namespace, "-f", str(key), str(file)]
    subprocess.run(["ssh-keygen", *words], check=True, capture_output=True)
    return file.with_name("to-sign.sig")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_signed_image_is_told_from_an_unsigned_one(good: Path, make_key: Key, kind: str) -> None:
    key = make_key(kind=kind)
    before = {path.name: path.read_bytes() for path in good.iterdir()}
    with pytest.raises(ImageError, match="is not signed"):
        check(good, public(key))
    sign(good, key)
    assert NAMESPACE in check(good, public(key))
    assert verify(good) == []
    after = {path.name: path.read_bytes() for path in good.iterdir()}
    assert after.pop(SIGNATURE)
    assert after == before


def test_the_signature_of_an_ed25519_key_is_always_the_same(good: Path, make_key: Key) -> None:
    key = make_key()
    sign(good, key)
    first = (good / SIGNATURE).read_bytes()
    sign(good, key)
    assert (good / SIGNATURE).read_bytes() == first


def test_another_key_is_not_taken(good: Path, make_key: Key) -> None:
    sign(good, make_key())
    with pytest.raises(ImageError, match="is not signed with a key of"):
        check(good, public(make_key("other")))
    both = good.parent / "both"
    both.write_text(
        public(good.parent / "other").read_text() + public(good.parent / "key").read_text()
    )
    check(good, both)


def test_a_signature_for_something_else_is_not_taken(good: Path, make_key: Key) -> None:
    key = make_key()
    for data, namespace in ((message(good), "git"), (b"another manifest", NAMESPACE)):
        signature = elsewhere(key, data, namespace)
        with pytest.raises(ImageError, match="no signature of this image"):
            attach(good, signature)
        shutil.copy(signature, good / SIGNATURE)
        with pytest.raises(ImageError, match="is not signed with a key of"):
            check(good, public(key))
        (good / SIGNATURE).unlink()
    attach(good, elsewhere(key, message(good)))
    check(good, public(key))


def test_one_signature_covers_every_file(good: Path, make_key: Key) -> None:
    key = make_key()
    sign(good, key)
    for path in sorted(good.iterdir()):
        if path.name == SIGNATURE:
            continue
        whole = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(ImageError):
            check(good, public(key))
        path.write_bytes(whole)
    (good / "more").write_bytes(b"")
    with pytest.raises(ImageError, match="not as it was published"):
        check(good, public(key))
    (good / "more").unlink()
    check(good, public(key))


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"-----BEGIN SSH SIGNATURE-----\n", b"-----BEGIN SSH SIGNATURE-----\n" * 9999],
)
def test_what_is_no_signature_is_refused_at_once(good: Path, make_key: Key, data: bytes) -> None:
    key = make_key()
    file = good.parent / "file"
    file.write_bytes(data)
    with pytest.raises(ImageError):
        attach(good, file)
    (good / SIGNATURE).write_bytes(data)
    with pytest.raises(ImageError):
        check(good, public(key))


def test_a_list_of_allowed_signers_says_who_and_for_what(good: Path, make_key: Key) -> None:
    key = make_key()
    sign(good, key)
    text = " ".join(public(key).read_text().split()[:2])
    allowed = good.parent / "allowed_signers"
    allowed.write_text(f'# release keys\nann@example.org namespaces="{NAMESPACE}" {text}\n')
    assert "ann@example.org" in check(good, allowed)
    assert "ann@example.org" in check(good, allowed, "ann@example.org")
    with pytest.raises(ImageError):
        check(good, allowed, "bob@example.org")
    for row in (
        f'ann@example.org namespaces="git" {text}',
        f'ann@example.org valid-before="20200101" {text}',
    ):
        allowed.write_text(row + "\n")
        with pytest.raises(ImageError):
            check(good, allowed)


@pytest.mark.parametrize("start", ["\ufeff", " # ours\n", "\t#\n\n  ", "\ufeff# ours\r\n"])
@pytest.mark.parametrize("who", ["", "ann@example.org "])
def test_how_a_file_of_keys_begins_does_not_change_what_it_is(
    start: str, who: str, good: Path, make_key: Key
) -> None:
    key, other = make_key(), make_key("other")
    keys = good.parent / "keys"
    keys.write_text(f"{start}{who}{public(key).read_text()}", encoding="utf-8")
    sign(good, key)
    assert (who.strip() or "signer") in check(good, keys)
    sign(good, other)
    with pytest.raises(ImageError):
        check(good, keys)


def test_an_identity_without_keys_to_check_it_by_is_refused(
    good: Path, make_key: Key, sevkit: Sevkit
) -> None:
    key = make_key()
    allowed = good.parent / "allowed_signers"
    allowed.write_text(f"ann@example.org {public(key).read_text()}")
    sign(good, key)
    words = ("verify", good, "--identity", "ann@example.org")
    refused = sevkit(*words)
    assert refused.returncode == 2
    assert "add --key FILE" in refused.stderr
    assert "as published" not in refused.stdout
    taken = sevkit(*words, "--key", allowed)
    assert (taken.returncode, taken.stderr) == (0, "")
    assert "ann@example.org" in taken.stdout


def test_files_that_hold_no_public_key_are_refused(good: Path, make_key: Key) -> None:
    key = make_key()
    sign(good, key)
    empty = good.parent / "empty"
    empty.write_text("# none\n")
    for file in (key, empty, good.parent / "absent"):
        with pytest.raises(RecipeError):
            check(good, file)
    check(good, public(key))


def test_an_image_that_was_changed_is_not_signed(good: Path, make_key: Key) -> None:
    key = make_key()
    (good / "vmlinuz").chmod(0o644)
    (good / "vmlinuz").write_bytes(b"other")
    with pytest.raises(ImageError, match="not as it was published"):
        sign(good, key)
    assert not (good / SIGNATURE).exists()


def test_what_is_no_key_does_not_sign(good: Path, make_key: Key) -> None:
    (good.parent / "no-key").write_text("nothing")
    with pytest.raises(RecipeError, match="can't sign"):
        sign(good, good.parent / "no-key")
    assert not (good / SIGNATURE).exists()


def test_a_signed_image_can_be_published_again(good: Path, make_key: Key, tmp_path: Path) -> None:
    data = shutil.copytree(good, tmp_path / "data")
    sign(good, make_key())
    assert publish(data, good) is False
    assert (good / SIGNATURE).exists()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An ssh-agent without keys, which those that the test starts can reach."""
    socket = tmp_path / "ssh-agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as process:
        while not socket.exists():
            assert process.poll() is None
            time.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        yield
        process.terminate()


@pytest.mark.usefixtures("agent")
def test_a_key_that_only_an_agent_holds_signs(good: Path, make_key: Key) -> None:
    key = make_key()
    kept = key.rename(key.with_name("away"))
    with pytest.raises(RecipeError, match=r"key\.pub can't sign"):
        sign(good, public(key))
    assert not (good / SIGNATURE).exists()
    subprocess.run(["ssh-add", "-q", kept], check=True, stdin=subprocess.DEVNULL)
    sign(good, public(key))
    assert NAMESPACE in check(good, public(key))


def test_a_key_with_a_passphrase_asks_for_it(
    good: Path, make_key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, asked = make_key(passphrase="open sesame"), tmp_path / "ask"
    monkeypatch.setenv("SSH_ASKPASS", str(asked))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    for answer in ("close sesame", "open sesame"):
        asked.write_text(f"#!/bin/sh\necho '{answer}'\n")
        asked.chmod(0o755)
        if answer.startswith("close"):
            with pytest.raises(RecipeError, match="can't sign") as caught:
                sign(good, key)
            assert "passphrase" in caught.value.why
            assert not (good / SIGNATURE).exists()
        else:
            sign(good, key)
    assert NAMESPACE in check(good, public(key))
