# SPDX-License-Identifier: Apache-2.0
"""Launch measurements of image directories, and the verbs measure, verify and diff."""

import base64
import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from firmware_samples import WITH_HASHES, firmware
from image_samples import Bench, recipe
from test_measure_id_block import write_key

from sevkit.cli import run
from sevkit.errors import ImageError, RecipeError
from sevkit.image.diff import differences
from sevkit.image.manifest import describe_file, load, text_of, write_sums
from sevkit.image.measured import id_blocks, measure_image, measurement_differences, wanted_of
from sevkit.image.shape import Manifest, Role
from sevkit.measure.digests import Boot, measure

FIRMWARE = firmware(hashes=(0x810C00, 0x400), sections=WITH_HASHES)
Change = Callable[[Bench], None]


def image(folder: Path, change: Change | None = None, **changes: Any) -> Path:
    """An image whose firmware has a place for hashes, after `change` to the stages' results."""
    folder.mkdir()
    bench = Bench(folder, recipe(**changes))
    (folder / "OVMF.fd").write_bytes(FIRMWARE)
    bench.others()
    if change:
        change(bench)
    bench.firmware()
    return bench.image()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return image(tmp_path / "good")


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def with_manifest(folder: Path, **facts: object) -> Manifest:
    """Edit a manifest and correct SHA256SUMS, as someone who wants to deceive would."""
    made = load(folder).model_copy(update=facts)
    (folder / "manifest.json").write_text(text_of(made))
    (folder / "SHA256SUMS").unlink()
    write_sums(folder)
    return made


def test_the_manifest_lists_what_its_files_measure_as(good: Path) -> None:
    manifest = load(good)
    rows = [row.record() for row in measure_image(good, manifest)]
    assert [row.model_dump() for row in manifest.measurements] == rows
    assert [row["mode"] for row in rows] == ["sev", *["sev-es"] * 4, *["sev-snp"] * 2]
    assert {row["covers"] for row in rows} == {"kernel-unchecked"}
    assert measurement_differences(good, manifest) == []


def test_words_that_are_appended_are_measured(good: Path, tmp_path: Path) -> None:
    manifest = load(good)
    words = ("console=ttyS0", "swiotlb=force", "debug")
    longer = image(tmp_path / "longer", None, kernel={**_kernel(), "cmdline": words})
    appended = measure_image(good, manifest, append=("debug",))
    assert [row.digest for row in appended] == [row.digest for row in load(longer).measurements]
    with pytest.raises(RecipeError, match="quote"):
        measure_image(good, manifest, append=('"',))


def test_a_command_line_that_a_runtime_composes_is_measured_whole(
    good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ("tsc=reliable", "console=ttyS0", "swiotlb=force", "debug")
    other = image(tmp_path / "other", None, kernel={**_kernel(), "cmdline": words})
    expected = [row.digest for row in load(other).measurements]
    whole = ["--cmdline", " ".join(words[:3]), "--append", words[3]]
    assert run(["measure", str(good), *whole, "--json"]) == 0
    assert [row["digest"] for row in json.loads(capfd.readouterr().out)] == expected
    assert run(["measure", str(good), "--cmdline", 'a="']) == 2
    assert "quote" in capfd.readouterr().err


def test_an_image_with_its_initramfs_in_the_kernel_measures_without_one(
    good: Path, tmp_path: Path
) -> None:
    folder = image(tmp_path / "builtin", lambda bench: bench.others(placement="builtin"))
    manifest = load(folder)
    assert "initramfs" not in manifest.files
    assert measurement_differences(folder, manifest) == []
    digests = {row.digest for row in manifest.measurements}
    assert not digests & {row.digest for row in load(good).measurements}
    firmware, kernel = ((folder / name).read_bytes() for name in ("firmware.fd", "vmlinuz"))
    boot = Boot("x", firmware, kernel, None, manifest.cmdline)
    assert {row.digest for row in measure(boot, wanted_of(manifest))} == digests


def _kernel() -> dict[str, Any]:
    return {"source": "linux", "patches": "linux-6.12", "configs": ("base", "sev")}


@pytest.mark.parametrize("name", ["vmlinuz", "initramfs", "firmware.fd"])
def test_a_file_that_was_replaced_after_the_build_is_refused_before_it_is_measured(
    good: Path, name: str
) -> None:
    assert measure_image(good, load(good))
    data = bytearray((good / name).read_bytes())
    data[5] ^= 1
    for content, why in ((data, "sha256 is"), (data + b"x", "it has more than the")):
        (good / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"{name} is not the .* of this image\n.*{why}"):
            measure_image(good, load(good))
    (good / name).unlink()
    with pytest.raises(ImageError, match="can't be read"):
        measure_image(good, load(good))


def test_a_manifest_that_was_edited_with_its_sums_is_found_by_its_digests(good: Path) -> None:
    rows = load(good).measurements
    forged = rows[0].model_copy(update={"digest": "0" * 64})
    for edited, words in (
        ((forged, *rows[1:]), f"sev, qemu: measures {rows[0].digest}"),
        (rows[1:], "lacks the measurement of sev, qemu"),
        ((rows[0].model_copy(update={"covers": "kernel"}), *rows[1:]), "(kernel)"),
    ):
        [line] = measurement_differences(good, with_manifest(good, measurements=edited))
        assert words in line
    more = rows[-1].model_copy(update={"vcpus": 77})
    [line] = measurement_differences(good, with_manifest(good, measurements=(*rows, more)))
    assert "measures what is not asked: sev-snp, EPYC-Milan, 77 vCPUs" in line
    for cmdline, why in (("größe", "ASCII"), ('a="', "quote"), ("x" * 3000, "3000 bytes")):
        manifest = with_manifest(good, measurements=rows, cmdline=cmdline)
        with pytest.raises(ImageError, match=f"cmdline .*{why}"):
            measure_image(good, manifest)


def test_a_mode_that_the_image_can_t_do_is_neither_listed_nor_measured(tmp_path: Path) -> None:
    def without_snp(bench: Bench) -> None:
        (bench.folder / "OVMF.fd").write_bytes(firmware(sections=None))

    folder = image(tmp_path / "plain", without_snp)
    manifest = load(folder)
    assert {(row.mode, row.covers) for row in manifest.measurements} == {
        ("sev", "firmware"),
        ("sev-es", "firmware"),
    }
    with pytest.raises(ImageError, match="can't be launched with sev-snp"):
        measure_image(folder, manifest, wanted=replace(wanted_of(manifest), modes=("sev-snp",)))


def printed(capsys: pytest.CaptureFixture[str], arguments: Sequence[object]) -> tuple[int, str]:
    status = run([str(word) for word in arguments])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_the_verb_measure_takes_other_values(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = printed(capsys, ["measure", good])
    assert status == 0
    assert text.splitlines()[0].endswith("sev, qemu  (firmware not shown to check the kernel)")
    words = ["--mode", "sev-snp", "--vcpus", "7", "--cpu", "EPYC-Turin", "--guest-features", "0x21"]
    status, text = printed(capsys, ["measure", good, *words, "--json"])
    [row] = json.loads(text)
    assert (status, row["vcpus"], row["cpu"], row["guest_features"]) == (0, 7, "EPYC-Turin", 33)
    status, text = printed(capsys, ["measure", good, "--mode", "sev", "--vmm", "gce"])
    assert (status, "no such launch" in text) == (2, True)
    words = ["--mode", "sev-es", "--guest-features", "0x20", "--init", "KVM_SEV_INIT2"]
    status, text = printed(capsys, ["measure", good, *words, *["--vcpus", "2"] * 2])
    assert (status, text.count("\n")) == (0, 1)
    assert "sev-es, EPYC-Milan, 2 vCPUs, features 0x20, KVM_SEV_INIT2, qemu" in text
    for flags in (["--vcpus", "0"], ["--cpu", "i486"], ["--guest-features", "x"]):
        assert printed(capsys, ["measure", good, *flags])[0] == 2
    for flags in (["--author-key", "x"], ["--mode", "sev", "--id-key", "x"]):
        assert printed(capsys, ["measure", good, *flags])[0] == 2


def test_the_verb_measure_states_in_an_id_block_what_the_owner_says(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = write_key(tmp_path / "id.pem", ec.generate_private_key(ec.SECP384R1()))
    words = ["measure", good, "--mode", "sev-snp", "--vcpus", "1", "--json"]
    stated = ["--guest-svn", "7", "--family-id", "0f" * 16, "--image-id", "A0" * 16]
    status, text = printed(capsys, [*words, "--id-key", key, "--policy", "0xb0000", *stated])
    [row] = json.loads(text)
    block = base64.b64decode(row["id_block"]["id_block"])
    assert status == 0
    assert block == bytes.fromhex(row["digest"]) + b"\x0f" * 16 + b"\xa0" * 16 + struct.pack(
        "<IIQ", 1, 7, 0xB0000
    )
    for flags, why in (
        (["--policy", "0"], "bit 17"),
        (["--guest-svn", "-1"], "32 bits"),
        (["--family-id", "0f"], "32 hexadecimal digits"),
    ):
        status, text = printed(capsys, [*words, "--id-key", key, *flags])
        assert (status, why in text) == (2, True)
    status, text = printed(capsys, [*words, "--image-id", "A0" * 16])
    assert (status, "--image-id is of an ID block" in text) == (2, True)


def test_id_blocks_are_made_of_snp_launches_and_of_what_is_asked_for_them(
    good: Path, tmp_path: Path
) -> None:
    key = write_key(tmp_path / "id.pem", ec.generate_private_key(ec.SECP384R1()))
    rows = measure_image(good, load(good))
    blocks = id_blocks(rows, key, guest_svn=7)
    assert [block is not None for block in blocks] == [row.mode == "sev-snp" for row in rows]
    signed = [block.block[:48].hex() for block in blocks if block is not None]
    assert signed == [row.digest for row in rows if row.mode == "sev-snp"]
    assert id_blocks(rows, None) == [None] * len(rows)
    with pytest.raises(RecipeError, match="--guest-svn is of an ID block"):
        id_blocks(rows, None, guest_svn=7)
    with pytest.raises(RecipeError, match="only SNP launches"):
        id_blocks([row for row in rows if row.mode != "sev-snp"], key)


def test_only_launches_of_checked_kernels_are_trusted(good: Path) -> None:
    manifest = load(good)
    assert manifest.trusted_launches("sev-snp") == []
    snp = [row for row in manifest.measurements if row.mode == "sev-snp"]
    trusted = snp[0].model_copy(update={"covers": "kernel"})
    rows = (*manifest.measurements, trusted, trusted.model_copy(update={"mode": "sev"}))
    assert manifest.model_copy(update={"measurements": rows}).trusted_launches("sev-snp") == [
        trusted
    ]


def test_verify_measures_too(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, ["verify", good])[0] == 0
    with_manifest(good, measurements=load(good).measurements[1:])
    status, text = printed(capsys, ["verify", good])
    assert (status, "lacks the measurement" in text) == (4, True)


def test_equal_images_do_not_differ(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(good, tmp_path / "copy")
    status, text = printed(capsys, ["diff", good, tmp_path / "copy"])
    assert (status, text.endswith("no difference\n")) == (0, True)
    assert printed(capsys, ["diff", good, tmp_path / "copy", "--json"]) == (0, "[]\n")


def other_config(bench: Bench) -> None:
    folder = bench.folder / "stage-kernel"
    text = (folder / "config").read_text() + "CONFIG_DEBUG_FS=y\n"
    (folder / "config").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    edit_json(folder / "kernel.json", lambda facts: facts.update(config_sha256=digest))


def other_patch(bench: Bench) -> None:
    path = bench.folder / "stage-kernel" / "kernel.json"
    edit_json(path, lambda facts: facts["patches"][0].update(sha256="9" * 64))


def other_file(bench: Bench) -> None:
    row = {"path": "/usr/bin/other", "type": "file", "sha256": "1" * 64, "origin": "package"}
    owner = {"package": "crun", "version": "1.8", "mode": "0755", "chain": ["/usr/bin/other"]}
    path = bench.folder / "stage-initramfs" / "contents.json"
    edit_json(path, lambda contents: contents["paths"].append({**row, **owner}))


def test_names_in_an_image_are_no_commands_for_the_terminal(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"path": "/a\x1b]0;x\nb", "type": "file", "mode": "0644", "origin": "recipe"}

    def odd(bench: Bench) -> None:
        path = bench.folder / "stage-initramfs" / "contents.json"
        edit_json(path, lambda contents: contents["paths"].append({**row, "chain": ["\x1b"]}))

    made = image(tmp_path / "odd", odd)
    for words in (["diff", good, made], ["why", row["path"], "--image", made]):
        _, text = printed(capsys, words)
        assert r"/a\x1b]0;x\nb" in text
        assert "\x1b" not in text


@pytest.mark.parametrize("content", ["{", "[]", '{"paths": [{"path": "/init"}]}'])
def test_an_image_whose_account_is_none_is_explained_by_neither_verb(
    good: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = tmp_path / "evil"
    shutil.copytree(good, evil)
    assert run(["why", "/nothing", "--image", str(good)]) == 2
    (evil / "contents.json").write_text(content)
    assert run(["why", "/init", "--image", str(evil)]) == 1
    assert "contents.json is not the contents of this image" in capsys.readouterr().err
    files = {**load(evil).files, "contents": describe_file(evil / "contents.json")}
    with_manifest(evil, files=files)
    for words in (["why", "/init", "--image", evil], ["diff", good, evil]):
        assert run([*map(str, words)]) == 1
        assert "contents.json is no account of an initramfs" in capsys.readouterr().err
    with_manifest(evil, files={role: one for role, one in files.items() if role != "contents"})
    (evil / "contents.json").unlink()
    (evil / "SHA256SUMS").unlink()
    write_sums(evil)
    for words in (["why", "/init", "--image", evil], ["diff", good, evil]):
        assert run([*map(str, words)]) == 1
        assert "has no file contents" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"\xff\xfe\n", "config:1: no configuration line"),
        (b"CONFIG_A=y\n" * 2, "config:2: there twice"),
    ],
)
def test_an_image_whose_configuration_is_none_is_not_compared(
    good: Path, tmp_path: Path, content: bytes, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def with_config(name: str, data: bytes) -> str:
        folder = Path(shutil.copytree(good, tmp_path / name))
        (folder / "config").write_bytes(data)
        files = {**load(folder).files, "config": describe_file(folder / "config")}
        with_manifest(folder, files=files)
        assert run(["verify", str(folder)]) == 0
        return str(folder)

    bytes_in_a_string = with_config("odd", b'CONFIG_LOCALVERSION="\xff"\n')
    assert run(["diff", str(good), bytes_in_a_string]) == 4
    assert r'kernel config: + LOCALVERSION: "\xff"' in capfd.readouterr().out
    assert run(["diff", str(good), with_config("none", content)]) == 1
    said = capfd.readouterr().err
    assert "config is no kernel configuration" in said
    assert why in said


def other_firmware(bench: Bench) -> None:
    data = bytearray(FIRMWARE)
    data[65536 + 20000] ^= 1
    (bench.folder / "OVMF.fd").write_bytes(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_config, "kernel config: + DEBUG_FS: y"),
        (other_patch, "patch: 0001-virtio.patch: sha256 bbb"),
        (other_file, f"initramfs: + /usr/bin/other: type file, sha256 {'1' * 64}, crun 1.8"),
        (
            other_firmware,
            "firmware volume: 8c8ce578-8a3d-4f1c-9935-896185c32dd3: 65536 bytes, sha256 ",
        ),
    ],
)
def test_each_cause_is_named(good: Path, tmp_path: Path, change: Change, words: str) -> None:
    found = [str(each) for each in differences(good, image(tmp_path / "other", change))]
    assert any(line.startswith(words) for line in found), found


def test_a_word_of_the_command_line_and_the_launches_that_move_are_named(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = image(tmp_path / "other", kernel={**_kernel(), "cmdline": ("console=ttyS0", "quiet")})
    before, after = (
        f"{load(folder).measurements[0].digest} (kernel-unchecked)" for folder in (good, other)
    )
    status, text = printed(capsys, ["diff", good, other])
    assert status == 4
    assert text.splitlines() == [
        f"measurement: sev qemu and 6 more of 7 launches that both list: {before} → {after}",
        "cmdline: - swiotlb=force",
        "cmdline: + quiet",
    ]
    status, text = printed(capsys, ["diff", good, other, "--json"])
    launches, removed, _ = json.loads(text)
    assert (launches["old"], launches["new"]) == (before, after)
    assert removed == {
        "part": "cmdline",
        "what": "swiotlb=force",
        "old": "",
        "new": None,
    }


def other_kernel(bench: Bench) -> None:
    path = bench.folder / "stage-kernel" / "vmlinuz"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


def other_archive(bench: Bench) -> None:
    data = b"compressee"
    folder = bench.folder / "stage-initramfs"
    (folder / "initramfs").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit_json(folder / "initramfs.json", lambda facts: facts.update(sha256=digest))


def lines(old: Path, new: Path) -> list[str]:
    return [str(each) for each in differences(old, new) if each.part != "measurement"]


@pytest.mark.parametrize(
    ("change", "role"), [(other_kernel, "kernel"), (other_archive, "initramfs")]
)
def test_a_file_that_differs_for_no_cause_of_its_own_is_named_beside_other_causes(
    good: Path, tmp_path: Path, change: Change, role: Role
) -> None:
    def changed_twice(bench: Bench) -> None:
        change(bench)
        other_firmware(bench)

    alone = image(tmp_path / "alone", change)
    digests = [load(folder).files[role].sha256 for folder in (good, alone)]
    unexplained = (
        f"{role}: changed without a cause of its own: sha256 {digests[0]} → sha256 {digests[1]}"
    )
    assert unexplained in lines(good, alone)
    quiet = image(tmp_path / "quiet", change, kernel={**_kernel(), "cmdline": ("quiet",)})
    assert {unexplained, "cmdline: + quiet"} <= set(lines(good, quiet))
    twice = lines(good, image(tmp_path / "twice", changed_twice))
    assert unexplained in twice
    assert [line for line in twice if "without a cause" in line] == [unexplained]


def test_a_file_that_differs_for_a_cause_of_its_own_is_not_named_again(
    good: Path, tmp_path: Path
) -> None:
    def patched(bench: Bench) -> None:
        other_kernel(bench)
        other_patch(bench)

    def linked(bench: Bench) -> None:
        bench.others(placement="builtin")
        other_kernel(bench)
        other_file(bench)

    def rebased(bench: Bench) -> None:
        other_kernel(bench)
        row = {**bench.provenance()[0], "reference": f"blob:{'b' * 64}"}
        bench.provenance = lambda: [row]  # type: ignore[method-assign]

    folders = [image(tmp_path / made.__name__, made) for made in (patched, linked, rebased)]
    assert "source: linux linux-source: 1 blob:aaa" in "\n".join(lines(good, folders[-1]))
    for folder in folders:
        assert not [line for line in lines(good, folder) if "without a cause" in line]


def test_an_image_that_is_not_as_published_is_not_compared(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "copy")
    (tmp_path / "copy" / "config").write_text("CONFIG_X=y\n")
    with pytest.raises(ImageError, match="not as it was published"):
        differences(good, tmp_path / "copy")
