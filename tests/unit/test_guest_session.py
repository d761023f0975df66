# SPDX-License-Identifier: Apache-2.0
"""What a boot takes from an image directory, and what it refuses before anything starts."""

import hashlib
import json
from pathlib import Path
from typing import Any

import image_samples
import pytest

from sevkit.cli import run
from sevkit.errors import ImageError, RecipeError
from sevkit.firmware.hash_table import hash_table
from sevkit.guest.boot import Outcome
from sevkit.guest.launch import Launch
from sevkit.guest.session import Asked, Session, spec_of
from sevkit.image.manifest import Manifest, describe_file, load, text_of, write_sums
from sevkit.image.requirements import BOOT_DEVICES

ROLES = {"kernel": "vmlinuz", "initramfs": "initramfs", "firmware": "firmware.fd"}
MODES = ("sev", "sev-es", "sev-snp")


def facts(folder: Path, **changes: Any) -> dict[str, Any]:
    sha256 = hashlib.sha256(b"").hexdigest()
    made: dict[str, Any] = {
        "manifest_version": 1,
        "name": "tiny",
        "version": "1.0.0",
        "summary": "",
        "build_id": "0123456789ab",
        "variant": "production",
        "architecture": "x86_64",
        "files": {role: describe_file(folder / name) for role, name in ROLES.items()},
        "cmdline": "console=ttyS0 panic=-1",
        "kernel": {
            "source": "linux",
            "release": "6.12.1-sevkit",
            "version": "6.12.1",
            "series": None,
            "patches": (),
            "moved_hunks": (),
            "fragments": (),
            "unmet_wanted": (),
            "config_sha256": sha256,
            "compiler": "gcc",
        },
        "initramfs": {
            "placement": "separate",
            "compression": "none",
            "level": 0,
            "compressor": "",
            "size": 0,
            "sha256": sha256,
            "archive_size": 0,
            "archive_sha256": sha256,
            "paths": 1,
            "packages": (),
        },
        "agent": {
            "name": "a",
            "path": "/init",
            "size": 0,
            "sha256": sha256,
            "format": "elf",
            "licence": None,
        },
        "firmware": {
            "source": "ovmf",
            "size": 0,
            "sha256": sha256,
            "sec_bits": 64,
            "has_variable_store": False,
            "loads_as": ("bios", "pflash"),
            "problems": {},
            "kernel_hashes": None,
            "verifies_kernel_hashes": None,
            "table": (),
            "metadata": None,
            "build": None,
        },
        "sources": (),
        "toolchain": {},
        "build": {"variables": {}, "toolchain": "host", "sandbox": "bwrap", "stages": {}},
        "launch": {
            "modes": {
                mode: {
                    "asked": mode != "sev-es",
                    "possible": mode != "sev-snp",
                    "problems": (),
                    "kernel_hashes": mode == "sev",
                    "host_kernel": "6.11",
                    "guest_kernel": "5.19",
                    "qemu": "9.1",
                    "qemu_kernel_hashes": "9.1",
                }
                for mode in MODES
            },
            "vcpus": (2, 4),
            "cpus": ("EPYC-Milan", "EPYC-Genoa"),
            "guest_features": (1,),
            "measured": False,
            "vmms": ("qemu",),
        },
        "measurements": (),
        "constraints": {},
        "memory": {
            "minimum_mib": 200,
            "default_mib": 512,
            "kernel_bytes": 1,
            "swiotlb": {
                "fixed_bytes": None,
                "percent": 6,
                "least_mib": 64,
                "most_mib": 1024,
                "slot_bytes": 2048,
                "devices": {},
            },
        },
    }
    return made | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of an image, without a manifest yet."""
    image = tmp_path / "image"
    image.mkdir()
    for name in ROLES.values():
        (image / name).write_text(name)
    return image


def published(folder: Path, **changes: Any) -> Manifest:
    manifest = Manifest.model_validate(facts(folder, **changes))
    (folder / "manifest.json").write_text(text_of(manifest))
    write_sums(folder)
    return load(folder)


def test_a_guest_is_what_the_manifest_says(folder: Path) -> None:
    spec = spec_of(published(folder), folder)
    assert (spec.kernel, spec.initramfs) == (folder / "vmlinuz", folder / "initramfs")
    assert (spec.firmware, spec.firmware_is_flash) == (folder / "firmware.fd", False)
    assert spec.cmdline == "console=ttyS0 panic=-1"
    assert (spec.memory_mib, spec.vcpus, spec.cpu) == (512, 2, "EPYC-Milan")
    assert (spec.modes, spec.hashed_modes) == (("sev",), ("sev",))
    assert (spec.hashes_at, spec.hashes) == (None, b"")


def test_firmware_with_a_place_for_hashes_gets_them_without_sev_too(folder: Path) -> None:
    place = {"base": 0x810C00, "size": 1024, "for_snp": True}
    firmware = facts(folder)["firmware"] | {"kernel_hashes": place}
    spec = spec_of(published(folder, firmware=firmware), folder)
    expected = hash_table(b"vmlinuz", b"initramfs", "console=ttyS0 panic=-1")
    assert (spec.hashes_at, spec.hashes) == (0x810C00, expected)


def test_a_newer_qemu_hands_firmware_the_kernel_as_it_is(folder: Path) -> None:
    place = {"base": 0x810C00, "size": 1024, "for_snp": True}
    (folder / "vmlinuz").write_bytes(bytes(0x202) + b"HdrS" + bytes(0x100))
    manifest = published(folder, firmware=facts(folder)["firmware"] | {"kernel_hashes": place})
    kernel = (folder / "vmlinuz").read_bytes()
    plain = hash_table(kernel, b"initramfs", "console=ttyS0 panic=-1")
    assert spec_of(manifest, folder, qemu_version=(10, 0, 2)).hashes == plain
    older = spec_of(manifest, folder, qemu_version=(9, 2, 4)).hashes
    assert older != plain
    assert spec_of(manifest, folder).hashes == older


def test_a_builtin_initramfs_and_a_flash_firmware_are_seen(folder: Path) -> None:
    all_facts = facts(folder)
    files = {role: file for role, file in all_facts["files"].items() if role != "initramfs"}
    firmware = {**all_facts["firmware"], "loads_as": ("pflash",)}
    spec = spec_of(published(folder, files=files, firmware=firmware), folder)
    assert spec.initramfs is None
    assert spec.firmware_is_flash


def test_memory_is_at_least_what_the_manifest_asks_for(folder: Path) -> None:
    manifest = published(folder)
    assert spec_of(manifest, folder, memory="200M").memory_mib == 200
    with pytest.raises(RecipeError, match="needs 200 MiB"):
        spec_of(manifest, folder, memory="199M")


def test_a_device_that_the_bounce_buffers_do_not_hold_is_refused(folder: Path) -> None:
    manifest = published(folder, cmdline="console=ttyS0 swiotlb=1024")
    assert spec_of(manifest, folder, vcpus=1)
    with pytest.raises(RecipeError, match="can't run with 512 MiB") as caught:
        spec_of(manifest, folder, vcpus=1, devices={**BOOT_DEVICES, "disk": 1})
    assert "1 disk with 1 vCPUs" in caught.value.why


def test_a_command_line_that_the_kernel_would_cut_off_is_refused(folder: Path) -> None:
    manifest = published(folder, cmdline="x" * 2020)
    assert len(spec_of(manifest, folder, more_cmdline="y" * 26).cmdline) == 2047
    with pytest.raises(RecipeError, match="2048 bytes, the kernel takes 2047"):
        spec_of(manifest, folder, more_cmdline="y" * 27)


@pytest.mark.parametrize("cmdline", ["a\0b", "a\x1b[2J", 'a="'])
def test_an_edited_manifest_s_command_line_is_one_clear_error(folder: Path, cmdline: str) -> None:
    assert spec_of(published(folder), folder)
    path = folder / "manifest.json"
    record = {**json.loads(path.read_text()), "cmdline": cmdline}
    path.write_text(json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    write_sums(folder)
    with pytest.raises(ImageError, match="cmdline"):
        spec_of(load(folder), folder)


def test_a_guest_has_room_for_its_workload_unless_its_size_is_said(folder: Path) -> None:
    manifest = published(folder)
    for room, mib in ((0, 512), (64 << 20, 512), (1 << 30, 1224), ((1 << 30) + 1, 1225)):
        assert spec_of(manifest, folder, room_for_bytes=room).memory_mib == mib
    assert spec_of(manifest, folder, memory="300M", room_for_bytes=1 << 30).memory_mib == 300


@pytest.mark.boots
@pytest.mark.parametrize("verb", ["boot", "run"])
@pytest.mark.parametrize(
    ("memory", "why"),
    [
        ("3G", "2048 MiB do not fit into 2048 MiB of memory below 4 GiB"),
        ("64M", "64 MiB is too little for this image"),
        ("2000M", "2000 MiB is too little for this image"),
    ],
)
def test_memory_that_can_t_be_is_refused_before_anything_starts(
    verb: str, memory: str, why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kernel = image_samples.recipe().kernel.model_dump()
    words = ("console=ttyS0", '"swiotlb=1048064,force"')
    image = image_samples.image(tmp_path, kernel={**kernel, "cmdline": words})
    (tmp_path / "root").mkdir()
    place = ["--output", str(tmp_path / "output")]
    words_of = {
        "boot": ["--memory", memory, str(image)],
        "run": ["--guest-memory", memory, str(image), f"dir:{tmp_path / 'root'}", "--", "true"],
    }
    assert run([*place, verb, *words_of[verb]]) == 2
    told = capfd.readouterr().err
    assert why in told
    assert {"boot": " --memory", "run": " --guest-memory"}[verb] in told
    assert {"boot": " --guest-memory", "run": " --memory"}[verb] not in told
    assert not (tmp_path / "output" / ".log").exists()
    assert run([*place, "export", str(image), "qemu", "--memory", "2700M"]) == 0


@pytest.mark.boots
def test_a_workload_image_comes_with_words_that_are_measured(folder: Path, tmp_path: Path) -> None:
    published(folder)
    disk = tmp_path / "disk"
    session = Session.of_image(
        folder,
        Asked(accel="tcg", disk=disk, more_cmdline='dm-mod.create="w"'),
        cache=tmp_path,
    )
    assert session.spec.cmdline == 'console=ttyS0 panic=-1 dm-mod.create="w"'
    assert session.spec.disk == disk


@pytest.mark.parametrize("name", ROLES.values())
def test_a_file_that_is_not_as_published_is_not_booted(folder: Path, name: str) -> None:
    manifest = published(folder)
    (folder / name).write_text("changed")
    with pytest.raises(ImageError, match=f"{name} is not the .* of this image"):
        spec_of(manifest, folder)
    (folder / name).write_text(name)
    assert spec_of(manifest, folder)
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    with pytest.raises(ImageError, match=f"{name} can't be read"):
        spec_of(manifest, folder)
    (folder / name).unlink()
    with pytest.raises(ImageError, match=f"{name} can't be read"):
        spec_of(manifest, folder)


@pytest.mark.boots
def test_a_session_says_how_the_guest_runs_and_what_became_of_it(
    folder: Path, tmp_path: Path
) -> None:
    published(folder, variant="debug")
    session = Session.of_image(folder, Asked(accel="tcg", rootfs=Path()), cache=tmp_path)
    assert session.setting.launch == Launch("tcg")
    assert session.setting.rootfs == Path.cwd()
    assert session.remarks() == ["this is a debug image: not for production"]
    outcome = Outcome(0, ({"kernel": "6.12"},), "0.1.0", 1.23456, 2.0)
    assert session.summary(outcome)[:2] == [
        "tiny 1.0.0 (0123456789ab) under tcg",
        "kernel          6.12",
    ]
    record = session.record(outcome)
    assert (record["accelerator"], record["memory_mib"]) == ("tcg", 512)
    assert (record["seconds_to_report"], record["reports"]) == (1.235, [{"kernel": "6.12"}])
