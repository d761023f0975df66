# SPDX-License-Identifier: Apache-2.0
"""Exports from a made-up image: what they say, what they refuse, and that they don't move."""

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from export_samples import changed

from sevkit.cli import run
from sevkit.errors import ImageError, RecipeError
from sevkit.exports import FORMATS, exported, subject_of
from sevkit.image.manifest import load, write_sums
from sevkit.image.requirements import BOOT_DEVICES


@pytest.mark.parametrize("format_name", FORMATS)
def test_an_export_is_the_same_bytes_every_time(format_name: str, hashed: Path) -> None:
    first = exported(subject_of(hashed), format_name)
    assert first == exported(subject_of(hashed), format_name)
    assert first


@pytest.mark.parametrize("format_name", FORMATS)
def test_nothing_is_written_for_a_mode_that_the_image_can_not_do(
    format_name: str, hashed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    modes = {mode: facts.model_dump() for mode, facts in load(hashed).launch.modes.items()}
    modes["sev-snp"] |= {"possible": False, "problems": ("firmware: no SNP metadata",)}
    image = changed(hashed, tmp_path / "no-snp", launch__modes=modes)
    out = tmp_path / "out"
    assert run(["export", str(image), format_name, "--mode", "sev-snp", "-o", str(out)]) == 1
    assert "firmware: no SNP metadata" in capfd.readouterr().err
    assert not out.exists()
    assert run(["export", str(hashed), format_name, "--mode", "sev-snp", "-o", str(out)]) == 0
    assert out.exists()


def test_without_a_mode_it_is_the_strongest_that_the_image_can_do(plain: Path) -> None:
    assert subject_of(plain).mode == "sev-snp"


@pytest.mark.parametrize("format_name", ["qemu", "qemu-config", "libvirt", "firmware-json", "kata"])
def test_an_export_of_a_debug_image_says_so(format_name: str, hashed: Path, tmp_path: Path) -> None:
    debug = changed(hashed, tmp_path / "debug", variant="debug")
    assert b"DEBUG IMAGE" in exported(subject_of(debug), format_name)
    assert b"DEBUG IMAGE" not in exported(subject_of(hashed), format_name)


@pytest.mark.parametrize("format_name", ["qemu", "qemu-config", "libvirt", "firmware-json"])
def test_an_export_names_the_command_line_that_digests_are_for(
    format_name: str, hashed: Path
) -> None:
    text = exported(subject_of(hashed), format_name).decode()
    assert "exactly this kernel command line" in text
    assert text.count(load(hashed).cmdline) >= 1


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("field", ["name", "version", "cpus"])
def test_a_manifest_puts_no_line_of_its_own_into_an_export(
    field: str, format_name: str, hashed: Path, tmp_path: Path
) -> None:
    """Its name came into a comment of the script that starts QEMU as it was."""
    text = (hashed / "manifest.json").read_text()
    manifest = json.loads(text)
    place = manifest["launch"] if field == "cpus" else manifest
    place[field] = [f"x\ntouch {tmp_path}/ran"] if field == "cpus" else f"x\ntouch {tmp_path}/ran"
    assert exported(subject_of(hashed), format_name)
    (hashed / "manifest.json").write_text(
        json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    )
    write_sums(hashed)
    with pytest.raises(ImageError, match=r"manifest\.json is no manifest"):
        subject_of(hashed)


def test_the_script_survives_the_shell_with_odd_paths_and_words(
    hashed: Path, tmp_path: Path
) -> None:
    odd = changed(hashed, tmp_path / "it's $HOME, `odd`", cmdline="a=\"b c\" d=$e `f` 'g'")
    text = exported(subject_of(odd, mode="sev"), "qemu").decode()
    script = tmp_path / "script"
    script.write_text(text)
    answer = subprocess.run(
        ["sh", str(script), "--more"],
        env={"QEMU": "/usr/bin/printf", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode in (0, 1)  # printf takes the first argument for its format
    words = shlex.split(text.partition("exec ")[2].replace("\\\n", " "))
    assert words[words.index("-append") + 1] == "a=\"b c\" d=$e `f` 'g'"
    assert words[words.index("-kernel") + 1] == str(odd.absolute() / "vmlinuz")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", os.fsdecode(b"a\xff")])
def test_a_folder_that_no_format_can_name_is_refused(
    name: str, hashed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for good in ("größe", "日本"):
        assert exported(subject_of(changed(hashed, tmp_path / good)), "qemu-config")
    image = changed(hashed, tmp_path / name)
    assert run(["export", str(image), "libvirt"]) == 1
    assert "whose name the formats" in capfd.readouterr().err


def test_a_value_that_readconfig_can_not_hold_is_refused(hashed: Path, tmp_path: Path) -> None:
    assert b"[machine]" in exported(subject_of(hashed), "qemu-config")
    for name, cmdline in (("quote", 'a="b"'), ("long", "x" * 1100)):
        image = changed(hashed, tmp_path / name, cmdline=cmdline)
        with pytest.raises(RecipeError, match=r"machine\.append"):
            exported(subject_of(image), "qemu-config")
        assert cmdline in shlex.split(exported(subject_of(image), "qemu").decode())


def test_vcpus_and_cpus_are_those_that_digests_are_listed_for(hashed: Path) -> None:
    assert b"-smp 2" in exported(subject_of(hashed, vcpus=2), "qemu")
    with pytest.raises(RecipeError, match="--vcpus"):
        subject_of(hashed, vcpus=3)
    with pytest.raises(RecipeError, match="--cpu"):
        subject_of(hashed, cpu="EPYC-Turin")


def test_a_kernel_that_was_replaced_after_the_build_is_not_exported(
    hashed: Path, tmp_path: Path
) -> None:
    image = changed(hashed, tmp_path / "replaced")
    assert subject_of(image)
    (image / "vmlinuz").chmod(0o644)
    (image / "vmlinuz").write_bytes(b"another kernel")
    with pytest.raises(ImageError, match="not as it was published"):
        subject_of(image)


@pytest.mark.parametrize(
    ("cmdline", "memory", "why"),
    [
        ("swiotlb=2097152", "6G", "do not fit into 2048 MiB"),
        ("swiotlb=512", None, "are too few for"),
    ],
)
def test_impossible_memory_is_refused_before_anything_is_written(
    cmdline: str, memory: str | None, why: str, hashed: Path, tmp_path: Path
) -> None:
    image = changed(hashed, tmp_path / "image", cmdline=cmdline)
    with pytest.raises(RecipeError) as caught:
        subject_of(image, memory=memory)
    assert why in caught.value.why
    assert subject_of(hashed, memory=memory)
    assert BOOT_DEVICES["serial-port"] == 2


def test_libvirt_s_domain_has_the_security_of_its_mode(hashed: Path) -> None:
    for mode, kind, loader, policy in (
        ("sev", "sev", "pflash", 0x1),
        ("sev-es", "sev", "pflash", 0x5),
        ("sev-snp", "sev-snp", "rom", 0x30000),
    ):
        root = ElementTree.fromstring(exported(subject_of(hashed, mode=mode), "libvirt"))
        security = root.find("launchSecurity")
        assert security is not None
        assert security.attrib == {"type": kind, "kernelHashes": "yes"}
        assert int(security.findtext("policy") or "", 16) == policy
        found = root.find("os/loader")
        assert found is not None
        assert found.get("type") == loader
    without = ElementTree.fromstring(exported(subject_of(hashed, mode="none"), "libvirt"))
    assert without.find("launchSecurity") is None


def test_the_firmware_descriptor_maps_flash_or_memory_as_the_mode_needs(hashed: Path) -> None:
    flash = json.loads(exported(subject_of(hashed, mode="sev"), "firmware-json"))
    memory = json.loads(exported(subject_of(hashed, mode="sev-snp"), "firmware-json"))
    assert flash["features"] == ["amd-sev", "amd-sev-es"]
    assert (flash["mapping"]["device"], flash["mapping"]["mode"]) == ("flash", "stateless")
    assert memory["features"] == ["amd-sev-snp"]
    assert memory["mapping"]["device"] == "memory"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An ID key and an author key."""
    paths = tuple(tmp_path_factory.mktemp("keys") / name for name in ("id.pem", "author.pem"))
    for path in paths:
        subprocess.run(
            ["openssl", "ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", path],
            check=True,
            capture_output=True,
        )
    return paths[0], paths[1]


def test_qemu_and_libvirt_get_the_id_block_of_the_launch_that_they_make(
    hashed: Path, keys: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    signed = ["--id-key", str(keys[0]), "--author-key", str(keys[1])]
    launch = ["--mode", "sev-snp", "--vcpus", "2"]
    assert run(["measure", str(hashed), *launch, *signed, "--json"]) == 0
    [row] = json.loads(capfd.readouterr().out)
    block, auth = row["id_block"]["id_block"], row["id_block"]["id_auth"]
    assert run(["export", str(hashed), "qemu", *launch, *signed]) == 0
    script = capfd.readouterr().out
    assert f",id-block={block},id-auth={auth},author-key-enabled=on" in script
    assert run(["export", str(hashed), "libvirt", *launch, *signed]) == 0
    security = ElementTree.fromstring(capfd.readouterr().out).find("launchSecurity")
    assert security is not None
    assert (security.findtext("idBlock"), security.findtext("idAuth")) == (block, auth)
    assert security.get("authorKey") == "yes"
    alone = exported(subject_of(hashed, vcpus=2, id_key=keys[0]), "qemu").decode()
    assert f"id-block={block}" in alone
    assert "author-key" not in alone
    assert alone == exported(subject_of(hashed, vcpus=2, id_key=keys[0]), "qemu").decode()


def test_an_id_block_is_refused_where_it_would_be_lost_or_vouch_for_nothing(
    plain: Path, hashed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    signed = ["--id-key", str(keys[0])]
    assert run(["export", str(hashed), "qemu", *signed]) == 0
    for words in (["kata", *signed], ["rvps", *signed], ["qemu", "--mode", "sev", *signed]):
        assert run(["export", str(hashed), *words]) == 2
    assert run(["export", str(hashed), "qemu", "--author-key", str(keys[1])]) == 2
    with pytest.raises(ImageError, match="every kernel would have them"):
        subject_of(plain, id_key=keys[0])
    with pytest.raises(RecipeError, match=r"object\.id-auth"):
        exported(subject_of(hashed, id_key=keys[0]), "qemu-config")
    elsewhere = changed(hashed, tmp_path / "gce", launch__vmms=("gce",))
    with pytest.raises(ImageError, match="no digest of the launch"):
        subject_of(elsewhere, id_key=keys[0])


def test_a_caller_of_the_library_meets_the_refusals_of_the_verb(
    hashed: Path, keys: tuple[Path, Path]
) -> None:
    signed = subject_of(hashed, mode="sev-snp", id_key=keys[0], author_key=keys[1])
    assert b"id-block=" in exported(signed, "qemu")
    with pytest.raises(RecipeError, match="the format kata holds no ID block"):
        exported(signed, "kata")
    with pytest.raises(RecipeError, match="--author-key is of an ID block"):
        subject_of(hashed, author_key=keys[1])
    plain = subject_of(hashed, mode="none", qemu="10.0")
    assert exported(plain, "libvirt")
    with pytest.raises(RecipeError, match="--qemu makes no difference to kata"):
        exported(plain, "kata")
    with pytest.raises(RecipeError, match="--qemu makes no difference with --mode sev-snp"):
        subject_of(hashed, mode="sev-snp", qemu="10.0")
    for text in ("", "10", "10.x", "10.0\n", "\uff11.0"):
        with pytest.raises(RecipeError, match="is no version"):
            subject_of(hashed, mode="none", qemu=text)


def test_a_version_of_qemu_that_makes_no_difference_is_refused(
    hashed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in (["qemu", "--mode", "sev"], ["kata", "--mode", "none"], ["rvps"]):
        assert run(["export", str(hashed), *words]) == 0
        assert run(["export", str(hashed), *words, "--qemu", "10.0"]) == 2
        assert "--qemu makes no difference" in capfd.readouterr().err
    assert run(["export", str(hashed), "qemu", "--mode", "none"]) == 0
    old = capfd.readouterr().out
    assert run(["export", str(hashed), "qemu", "--mode", "none", "--qemu", "10.0"]) == 0
    assert capfd.readouterr().out != old


def kata(image: Path, **asked: Any) -> tuple[str, dict[str, Any]]:
    """The drop-in as text, and its tables."""
    text = exported(subject_of(image, **asked), "kata").decode()
    return text, tomllib.loads(text)


def test_kata_s_drop_in_turns_off_what_an_encrypted_guest_can_not_have(hashed: Path) -> None:
    _, found = kata(hashed)
    hypervisor = found["hypervisor"]["qemu"]
    assert hypervisor["shared_fs"] == "none"
    assert hypervisor["disable_image_nvdimm"] is True
    assert hypervisor["virtio_fs_cache_size"] == 0
    assert hypervisor["enable_virtio_mem"] is False
    assert hypervisor["sev_snp_guest"] is True
    assert hypervisor["snp_guest_policy"] == 0x30000
    assert (hypervisor["snp_id_block"], hypervisor["snp_id_auth"]) == ("", "")
    assert found["factory"] == {"enable_template": False, "vm_cache_number": 0}


def test_kata_s_drop_in_holds_any_name_that_can_be_printed(hashed: Path, tmp_path: Path) -> None:
    for name in ("größe", "日本", "😀 \\u0041"):
        image = changed(hashed, tmp_path / name)
        text, found = kata(image)
        assert found["hypervisor"]["qemu"]["kernel"] == str(image / "vmlinuz")
        annotations = {
            key: json.loads(value)
            for key, colon, value in (line.strip("# ").partition(": ") for line in text.split("\n"))
            if colon and key.startswith("io.katacontainers")
        }
        assert annotations["io.katacontainers.config.hypervisor.kernel"] == str(image / "vmlinuz")
        assert "\\ud83d" not in text


@pytest.mark.parametrize("mode", ["sev", "sev-es"])
def test_kata_is_not_asked_for_a_mode_that_it_no_longer_has(mode: str, hashed: Path) -> None:
    assert kata(hashed, mode="sev-snp")
    with pytest.raises(ImageError, match=f"launch a guest with {mode}\n") as caught:
        kata(hashed, mode=mode)
    assert caught.value.hint == "--mode sev-snp"


def test_kata_gets_no_firmware_that_would_wait_for_hashes_without_sev(hashed: Path) -> None:
    text, found = kata(hashed, mode="none")
    hypervisor = found["hypervisor"]["qemu"]
    assert hypervisor["firmware"] == ""
    assert (hypervisor["confidential_guest"], hypervisor["sev_snp_guest"]) == (False, False)
    assert "hypervisor.firmware" not in text
    text, found = kata(hashed, mode="sev-snp")
    assert found["hypervisor"]["qemu"]["firmware"] == str(hashed / "firmware.fd")
    assert "hypervisor.firmware_hash" in text


def test_kata_s_host_decides_on_annotations_and_their_names_match_no_other(hashed: Path) -> None:
    """The runtime looks for a match anywhere in a name: regexp.MatchString of Go."""
    text, found = kata(hashed)
    assert "enable_annotations" not in found["hypervisor"]["qemu"]
    [line] = [one for one in text.splitlines() if one.startswith("# enable_annotations")]
    patterns = tomllib.loads(line.removeprefix("# "))["enable_annotations"]
    allowed = ["kernel", "kernel_hash", "initrd", "initrd_hash", "firmware", "firmware_hash"]
    others = ["kernel_params", "kernel_verity_params", "firmware_volume", "firmware_volume_hash"]
    matched = [name for name in allowed + others if any(re.search(one, name) for one in patterns)]
    assert matched == allowed


def test_kata_s_drop_in_says_how_to_compute_the_digest_of_its_guests(
    hashed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text, _ = kata(hashed, vcpus=2)
    assert "EPYC-Milan" not in text
    [line] = [one for one in text.splitlines() if "sevkit measure" in one]
    words = shlex.split(line.removeprefix("#"))
    words[words.index("--cmdline") + 1] = "tsc=reliable console=ttyS0"
    assert run(["measure", str(hashed), *words[3:], "--json"]) == 0
    [row] = json.loads(capfd.readouterr().out)
    assert (row["mode"], row["cpu"], row["vcpus"]) == ("sev-snp", "EPYC-v4", 2)


KATA_KEYS = """\
path kernel initrd image firmware firmware_volume machine_type kernel_params confidential_guest
sev_snp_guest snp_id_block snp_id_auth snp_guest_policy default_vcpus default_maxvcpus
default_memory enable_iommu enable_iommu_platform shared_fs virtio_fs_cache_size
disable_image_nvdimm enable_virtio_mem memory_offset reclaim_guest_freed_memory
guest_memory_dump_path enable_debug enable_annotations
"""
"""Keys of [hypervisor.qemu]: configuration-qemu-snp.toml.in at 0264aa507df4 (Kata 4, 2026), whose
image takes the place of the initrd that config.go still knows. Kata 4 has no file_mem_backend."""


def test_kata_knows_every_key_of_the_drop_in(hashed: Path) -> None:
    for mode in ("none", "sev-snp"):
        _, found = kata(hashed, mode=mode)
        assert found["hypervisor"]["qemu"].keys() <= set(KATA_KEYS.split())
        assert found["factory"].keys() <= {"enable_template", "vm_cache_number"}
        assert found["runtime"].keys() <= {"static_sandbox_resource_mgmt", "sandbox_bind_mounts"}


def test_the_verb_writes_whole_files_or_none(
    hashed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "guest.sh"
    assert run(["export", str(hashed), "qemu", "-o", str(out)]) == 0
    assert out.stat().st_mode & 0o777 == 0o755
    before = out.read_bytes()
    assert run(["export", str(hashed), "rvps", "--mode", "sev", "-o", str(out)]) == 1
    assert "trustee has no reference value for sev" in capfd.readouterr().err
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guest.sh", "hashed"]


def test_the_verb_writes_to_a_pipe_and_where_a_link_leads(hashed: Path, tmp_path: Path) -> None:
    pipe, link, real = (tmp_path / name for name in ("pipe", "link", "real"))
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert run(["export", str(hashed), "rvps", "-o", str(pipe)]) == 0
    assert os.read(reader, 1 << 16) == exported(subject_of(hashed), "rvps")
    os.close(reader)
    assert pipe.is_fifo()
    link.symlink_to(real)
    assert run(["export", str(hashed), "rvps", "-o", str(link)]) == 0
    assert link.is_symlink()
    assert real.read_bytes() == exported(subject_of(hashed), "rvps")


def test_a_file_without_a_name_is_refused(hashed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(hashed), "rvps", "-o", ""]) == 2
    assert "has no name" in capfd.readouterr().err
    assert run(["export", str(hashed), "rvps"]) == 0


def test_every_format_of_the_package_is_a_choice_of_the_verb(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(["export", "--help"]) == 0
    text = capfd.readouterr().out
    for name in FORMATS:
        assert name in text


def test_a_command_line_ends_nothing_in_the_format_that_holds_it(
    hashed: Path, tmp_path: Path
) -> None:
    """Somebody else's recipe may try to close the quotes or the element that it is put into."""
    evil = "a</cmdline></os><devices/> b=]]>&amp; c=\"\\\" '''d''' $(e) \"\"\" \"f"
    image = changed(hashed, tmp_path / "evil", cmdline=evil)
    domain = ElementTree.fromstring(exported(subject_of(image), "libvirt"))
    assert domain.findtext("os/cmdline") == evil
    assert [part.tag for part in domain].count("os") == 1
    kata = tomllib.loads(exported(subject_of(image), "kata").decode())
    assert kata["hypervisor"]["qemu"]["kernel_params"] == evil
    script = exported(subject_of(image), "qemu").decode()
    words = shlex.split(script.partition("exec ")[2].replace("\\\n", " "))
    assert words[words.index("-append") + 1] == evil
