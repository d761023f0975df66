# SPDX-License-Identifier: Apache-2.0
"""Manifests: written, read back, refused when edited; images checked byte by byte."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from image_samples import image

from sevkit.cli import run
from sevkit.errors import ImageError
from sevkit.image.manifest import load, schema, text_of, verify, write_sums

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "manifest.json"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return image(tmp_path)


def edited(folder: Path, change: Callable[[Any], Any], *, consistent: bool = True) -> Path:
    """Change the manifest as a program would; `consistent` corrects SHA256SUMS too."""
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    changed = change(value)
    made = value if changed is None else changed
    path.write_text(json.dumps(made, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    if consistent:
        (folder / "SHA256SUMS").unlink()
        write_sums(folder)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ImageError) as caught:
        load(folder)
    return str(caught.value)


def test_a_manifest_is_read_as_it_was_written(good: Path) -> None:
    manifest = load(good)
    assert text_of(manifest) == (good / "manifest.json").read_text()
    assert manifest.cmdline == "console=ttyS0 swiotlb=force"
    assert manifest.possible_modes == ("sev", "sev-es", "sev-snp")
    assert not manifest.is_debug
    assert set(manifest.files) == {"kernel", "initramfs", "firmware", "config", "contents", "sbom"}


def test_the_text_of_a_manifest_is_the_one_that_was_agreed_on(good: Path) -> None:
    assert (good / "manifest.json").read_text() == GOLDEN.read_text()


def test_the_same_inputs_give_the_same_bytes_anywhere(good: Path, tmp_path: Path) -> None:
    other = tmp_path / "some" / "where else"
    other.mkdir(parents=True)
    again = image(other)
    for name in ("manifest.json", "SHA256SUMS"):
        assert (good / name).read_bytes() == (again / name).read_bytes()


def test_a_manifest_holds_no_path_of_this_machine(good: Path) -> None:
    for name in ("manifest.json", "SHA256SUMS"):
        assert str(good.parent) not in (good / name).read_text()
        assert "/home" not in (good / name).read_text()


# --- schema --------------------------------------------------------------------------------------


def test_a_manifest_fits_the_published_schema(good: Path) -> None:
    published = schema()
    jsonschema.Draft202012Validator.check_schema(published)
    assert published["$id"] == "urn:sevkit:manifest:1"
    jsonschema.Draft202012Validator(published).validate(
        json.loads((good / "manifest.json").read_text())
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("cmdline"),
        lambda m: m.update(when="today"),
        lambda m: m["files"]["kernel"].update(sha256="A" * 64),
        lambda m: m["files"]["kernel"].update(path="../vmlinuz"),
        lambda m: m["files"].update(modules=m["files"]["kernel"]),
        lambda m: m["launch"]["modes"].update(tdx=m["launch"]["modes"]["sev"]),
        lambda m: m["launch"]["modes"].pop("sev-es"),
        lambda m: m["files"].pop("firmware"),
        lambda m: m["constraints"].update(dax=True),
        lambda m: m.update(variant="release"),
        lambda m: m["memory"].update(minimum_mib="224"),
        lambda m: m["launch"]["vcpus"].append(0),
        lambda m: m["launch"]["vcpus"].clear(),
        lambda m: m["launch"]["cpus"].clear(),
        lambda m: m["launch"]["cpus"].append("EPYC,foo"),
        lambda m: m.update(name="a\nb"),
        lambda m: m.update(version="1\n2"),
        lambda m: m["sources"][0].update(origin={}),
        lambda m: m["sources"][0]["origin"].pop("version"),
        lambda m: m["sources"][0]["origin"].update(kind="git"),
        lambda m: m["sources"][0]["origin"].update(kind="oci"),
    ],
)
def test_what_the_schema_refuses_is_refused_when_read(
    good: Path, change: Callable[[Any], Any]
) -> None:
    load(good)
    edited(good, lambda m: (change(m), m)[1])
    validator = jsonschema.Draft202012Validator(schema())
    assert not validator.is_valid(json.loads((good / "manifest.json").read_text()))
    assert "manifest.json is no manifest" in refusal(good)


@pytest.mark.parametrize(
    "change",
    [
        lambda m, text: m["kernel"].update(compiler=text),
        lambda m, text: m["kernel"]["patches"][0].update(description=text),
        lambda m, text: m["kernel"].update(fragments=[text]),
        lambda m, text: m["toolchain"].update(zstd=text),
        lambda m, text: m["toolchain"].update({text: "1"}),
        lambda m, text: m.update(cmdline=text),
        lambda m, text: m["sources"][0]["origin"].update(suite=text),
        lambda m, text: m["firmware"]["problems"].update(sev=[text]),
    ],
)
def test_text_that_would_be_a_command_somewhere_is_refused(
    good: Path, change: Callable[[Any, str], Any]
) -> None:
    edited(good, lambda m: (change(m, "über"), m)[1])
    load(good)
    for text in ("a\nb", "\x1b]0;x", "\u202e"):
        edited(good, lambda m, text=text: (change(m, text), m)[1])  # type: ignore[misc]
        assert "must be printable, without line breaks" in refusal(good)


def test_what_an_image_is_built_by_stays_as_the_recipe_has_it(good: Path) -> None:
    def several_lines(manifest: Any) -> None:
        manifest["build"]["variables"]["motd"] = "a\nb"
        next(iter(manifest["build"]["stages"].values()))["params"]["motd"] = "a\nb"

    edited(good, several_lines)
    assert load(good).build.variables["motd"] == "a\nb"


def test_addresses_are_a_line_each(good: Path) -> None:
    def urls(text: str) -> Callable[[Any], Any]:
        return lambda m: m["sources"][0].update(origin={"kind": "url", "url": text})

    load(edited(good, urls("https://a.invalid/x\nhttps://b.invalid/x")))
    assert load(good).sources[0].addresses == ["https://a.invalid/x", "https://b.invalid/x"]
    edited(good, urls("https://a.invalid/x\x1b"))
    assert "must be printable" in refusal(good)


# --- refusals ------------------------------------------------------------------------------------


def test_a_manifest_edited_by_hand_is_refused(good: Path) -> None:
    load(good)
    path = good / "manifest.json"
    path.write_text(path.read_text().replace("swiotlb=force", "swiotlb=noforce"))
    assert "SHA256SUMS has another digest for it" in refusal(good)


def test_a_manifest_in_another_text_form_is_refused(good: Path) -> None:
    path = good / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    write_sums(good)
    assert "not as sevkit writes it" in refusal(good)


def test_a_key_that_is_there_twice_is_refused(good: Path) -> None:
    path = good / "manifest.json"
    path.write_text(path.read_text().replace('"agent": {', '"name": "other",\n  "agent": {', 1))
    write_sums(good)
    assert "not as sevkit writes it" in refusal(good)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not JSON"),
        (b"[]", "manifest_version None"),
        (b"{}", "manifest_version None"),
        (b'{"manifest_version": 2}', "manifest_version 2, and this sevkit reads 1"),
        (b'{"manifest_version": true}', "manifest_version True"),
        (b'{"manifest_version": 1}', "name: Field required"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b" " * ((8 << 20) + 1), "is larger than 8 MiB"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_what_is_no_manifest_is_one_error(good: Path, content: bytes, why: str) -> None:
    load(good)
    (good / "manifest.json").write_bytes(content)
    assert why in refusal(good)


def test_a_manifest_cut_anywhere_is_one_error(good: Path) -> None:
    whole = (good / "manifest.json").read_bytes()
    for length in range(0, len(whole), 97):
        (good / "manifest.json").write_bytes(whole[:length])
        refusal(good)
    (good / "manifest.json").write_bytes(whole)
    load(good)


def test_no_mutation_of_a_manifest_is_more_than_one_error(good: Path) -> None:
    raw, chance = (good / "manifest.json").read_bytes(), random.Random(9)
    values = list(re.finditer(rb': ("[^"]*"|\d+|null|true|false)', raw))
    odd = [
        rb'"\ud800"',
        b"NaN",
        b"1e999",
        b"9" * 40,
        b"null",
        b"{}",
        b"[]",
        b"1.0",
        b'"\xed\xa0\x80"',
    ]
    refused = 0
    for _ in range(400):
        data = bytearray(raw)
        if chance.random() < 0.5:
            value = chance.choice(values)
            data[value.start(1) : value.end(1)] = chance.choice(odd)
        else:
            data[chance.randrange(len(data))] = chance.randrange(256)
        (good / "manifest.json").write_bytes(data)
        write_sums(good)
        verify(good)
        try:
            load(good)
        except ImageError:
            refused += 1
    assert 100 < refused < 400


def test_a_huge_manifest_is_refused_without_being_read(good: Path) -> None:
    with (good / "manifest.json").open("wb") as file:
        file.truncate(100 << 30)
    assert "larger than" in refusal(good)


def test_a_directory_without_a_manifest_is_refused(good: Path, tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path)
    (good / "SHA256SUMS").unlink()
    assert "SHA256SUMS can't be read" in refusal(good)


def test_a_manifest_behind_a_symbolic_link_is_refused(good: Path) -> None:
    (good / "manifest.json").rename(good.parent / "elsewhere.json")
    (good / "manifest.json").symlink_to(good.parent / "elsewhere.json")
    assert "can't be read" in refusal(good)


# --- verification --------------------------------------------------------------------------------


def test_a_good_image_has_no_differences_wherever_it_is_copied(good: Path, tmp_path: Path) -> None:
    assert verify(good) == []
    shutil.copytree(good, tmp_path / "copy")
    for path in (tmp_path / "copy").iterdir():
        path.chmod(0o444)
    assert verify(tmp_path / "copy") == []


def test_sha256sum_agrees(good: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    answer = subprocess.run(command, cwd=good, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "manifest.json: OK" in answer.stdout
    (good / "config").write_text("CONFIG_X=y\n")
    assert subprocess.run(command, cwd=good, capture_output=True, check=False).returncode == 1


FILES = (
    "vmlinuz",
    "initramfs",
    "firmware.fd",
    "config",
    "contents.json",
    "sbom.cdx.json",
    "manifest.json",
    "SHA256SUMS",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0, 0.5, 1])
def test_a_flipped_byte_is_found_and_its_file_named(good: Path, name: str, where: float) -> None:
    assert set(FILES) == {path.name for path in good.iterdir()}
    assert verify(good) == []
    data = bytearray((good / name).read_bytes())
    data[min(int(len(data) * where), len(data) - 1)] ^= 1
    (good / name).write_bytes(data)
    differences = verify(good)
    assert any(name in line for line in differences)
    others = set(FILES) - {name, "manifest.json", "SHA256SUMS"}
    if name != "SHA256SUMS":
        assert not any(line.startswith(f"{other}:") for line in differences for other in others)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda f: (f / "vmlinuz").unlink(), "vmlinuz: is missing"),
        (lambda f: (f / "note\n.txt").write_text(""), "note\\n.txt: does not belong to the image"),
        (lambda f: (f / "modules").mkdir(), "modules: does not belong to the image"),
        (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS: is missing"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: is missing"),
        (
            lambda f: os.truncate(f / "initramfs", 3),
            "initramfs: has 3 bytes, manifest.json says 10",
        ),
    ],
)
def test_what_is_missing_extra_or_short_is_named(
    good: Path, spoil: Callable[[Path], Any], line: str
) -> None:
    assert verify(good) == []
    spoil(good)
    assert line in verify(good)


@pytest.mark.parametrize("name", FILES)
def test_anything_but_a_file_is_a_difference_and_never_followed(good: Path, name: str) -> None:
    (good / name).rename(good.parent / "moved")
    (good / name).symlink_to(good.parent / "moved")
    assert f"{name}: is a symbolic link, must be a file" in verify(good)
    (good / name).unlink()
    os.mkfifo(good / name)
    assert f"{name}: is no regular file, must be a file" in verify(good)


def test_a_digest_of_each_kind_is_checked(good: Path) -> None:
    for kind in ("sha256", "sha384", "sha512"):
        folder = good.parent / kind
        shutil.copytree(good, folder)

        def change(manifest: Any, kind: str = kind) -> None:
            digest = manifest["files"]["config"][kind]
            manifest["files"]["config"][kind] = digest[:-1] + ("0" if digest[-1] != "0" else "1")

        edited(folder, change)
        [line] = verify(folder)
        assert line.startswith(f"config: {kind} is ")


def test_checksums_that_leave_a_file_out_are_a_difference(good: Path) -> None:
    path = good / "SHA256SUMS"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "config" not in line))
    assert verify(good) == ["config: in only one of manifest.json and SHA256SUMS"]
    wrong = hashlib.sha256(b"").hexdigest()
    path.write_text("".join(lines) + f"{wrong}  more\n")
    assert "more: in only one of manifest.json and SHA256SUMS" in verify(good)


def test_without_checksums_or_manifest_the_other_files_are_still_checked(good: Path) -> None:
    for lost in ("SHA256SUMS", "manifest.json"):
        folder = good.parent / lost
        shutil.copytree(good, folder)
        (folder / lost).unlink()
        lines = verify(folder)
        assert f"{lost}: is missing" in lines
        assert not any("does not belong" in line for line in lines)
        (folder / "vmlinuz").write_bytes(b"")
        assert any(line.startswith("vmlinuz: ") for line in verify(folder))


HIDES = "\x1b[2K\x1b[1Gimage: as published\n\x1b[8m"


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update({HIDES: 1}),
        lambda manifest: manifest["files"].update({HIDES: 1}),
        lambda manifest: manifest.update(manifest_version=HIDES),
    ],
)
def test_nothing_in_a_manifest_is_a_command_for_the_terminal(
    good: Path, change: Callable[[Any], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(good)]) == 0
    assert capfd.readouterr().out == f"{good}: as published\n"
    (good / f"größe{HIDES}").write_text("")
    edited(good, change, consistent=False)
    assert run(["verify", str(good)]) == 4
    said = capfd.readouterr().out
    assert all(line.isprintable() for line in said.splitlines())
    assert said.count(r"\x1b[2K\x1b[1Gimage: as published\n\x1b[8m") >= 2
    assert "größe" in said
    assert said.endswith(" differ\n")


def test_a_folder_that_is_not_there_is_an_error(good: Path) -> None:
    assert verify(good) == []
    with pytest.raises(ImageError, match="can't be read"):
        verify(good / "nowhere")


def test_remarks_say_what_is_not_possible_and_not_proven(tmp_path: Path) -> None:
    manifest = load(image(tmp_path))
    assert manifest.remarks() == [
        "the firmware takes no hashes: kernel and initramfs are not measured"
    ]


def test_a_debug_image_says_so(tmp_path: Path) -> None:
    assert load(image(tmp_path, debug=True)).is_debug
