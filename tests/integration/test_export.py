# SPDX-License-Identifier: Apache-2.0
"""Exports are taken by programs that they are for: QEMU, libvirt's schemas, libvirtd. What Kata and
verifiers are given has no program here: see the unit tests."""

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sevkit.archive import unpack_deb
from sevkit.image.manifest import load
from sevkit.recipe.model import DebSource
from sevkit.sources import Apt, DebGroup, fetch, resolve

Sevkit = Callable[..., subprocess.CompletedProcess[str]]
NOBODY = 65534
HELLO = b'{"event":"hello"'


Exported = Callable[..., Path]


@pytest.fixture
def exported(sevkit: Sevkit, sev_guest: Path, tmp_path: Path) -> Exported:
    def export(format_name: str, mode: str, *more: object) -> Path:
        out = tmp_path / f"{format_name}-{mode}"
        answer = sevkit("export", sev_guest, format_name, "--mode", mode, "-o", out, *more)
        assert answer.returncode == 0, answer.stderr
        return out

    return export


@pytest.fixture
def signed(tmp_path: Path) -> tuple[object, ...]:
    """The words that ask for an ID block."""
    words: list[object] = []
    for flag in ("--id-key", "--author-key"):
        key = tmp_path / f"{flag[2:]}.pem"
        make = ["openssl", "ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", key]
        subprocess.run(make, check=True, capture_output=True)
        words += [flag, key]
    return tuple(words)


def hello_of(agent: Path, process: "subprocess.Popen[bytes]", seconds: float = 60) -> bytes:
    """The first frame that the agent of a started guest sends."""
    end = time.monotonic() + seconds
    while not agent.exists():
        assert process.poll() is None, "QEMU ended"
        assert time.monotonic() < end
        time.sleep(0.05)
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(agent))
        channel.settimeout(seconds)
        return channel.recv(400)


@contextlib.contextmanager
def started(argv: list[str], folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    with (folder / "qemu.log").open("wb") as log:
        process = subprocess.Popen(
            argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_script_boots_the_guest_with_its_hashes_checked(
    exported: Exported, tmp_path: Path
) -> None:
    with started([str(exported("qemu", "none"))], tmp_path) as process:
        assert HELLO in hello_of(tmp_path / "agent.sock", process)


def config_argv(path: Path, qemu: Path | None = None) -> list[str]:
    """What the head of a configuration file says is to be run."""
    [line] = [one for one in path.read_text().splitlines() if "-readconfig THIS_FILE" in one]
    program, *words = line.removeprefix("# ").replace("THIS_FILE", str(path)).split()
    return [str(qemu or program), *words]


def test_the_configuration_file_boots_the_guest_too(exported: Exported, tmp_path: Path) -> None:
    with started(config_argv(exported("qemu-config", "none")), tmp_path) as process:
        assert HELLO in hello_of(tmp_path / "agent.sock", process)


@pytest.mark.parametrize("mode", ["sev", "sev-es"])
def test_qemu_understands_the_script_of_a_mode_and_lacks_only_the_hardware(
    mode: str, exported: Exported, tmp_path: Path
) -> None:
    answer = subprocess.run(
        [str(exported("qemu", mode))],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if Path("/dev/sev").exists():
        pytest.skip("this host has SEV: the guest would run")
    assert answer.returncode == 1
    assert "sev_kvm_init" in answer.stderr or "access KVM" in answer.stderr


@pytest.fixture(scope="module")
def new_qemu(tmp_path_factory: pytest.TempPathFactory, mirror: None) -> Path:
    """A program that runs Debian 13's QEMU, which knows SEV-SNP, from unpacked packages."""
    folder = tmp_path_factory.mktemp("qemu")
    root = folder / "root"
    root.mkdir()
    apt = Apt(folder / "apt")
    for pin in resolve(DebGroup(("qemu-system-x86",), "trixie"), apt):
        fetch(pin, folder / pin.name, lambda *told: None, apt)
        unpack_deb(folder / pin.name, root)
        (folder / pin.name).unlink()
    libraries = root / "usr/lib/x86_64-linux-gnu"
    argv = [libraries / "ld-linux-x86-64.so.2", "--library-path", libraries]
    argv.append(root / "usr/bin/qemu-system-x86_64")
    argv += ["-L", root / "usr/share/qemu", "-L", root / "usr/share/seabios"]
    program = folder / "qemu"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, argv))} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.network
def test_a_qemu_that_knows_snp_understands_it_and_lacks_only_the_hardware(
    exported: Exported, new_qemu: Path, signed: tuple[object, ...], tmp_path: Path
) -> None:
    if Path("/dev/sev").exists():
        pytest.skip("this host has SEV: the guest would run")
    script = exported("qemu", "sev-snp", *signed)
    misspelt, longer = tmp_path / "misspelt", tmp_path / "longer"
    misspelt.write_text(script.read_text().replace("kernel-hashes=", "kernel-digests="))
    longer.write_text(script.read_text().replace(",id-block=", ",id-block=AAAA"))
    complaints = [
        subprocess.run(
            argv,
            cwd=tmp_path,
            env={**os.environ, "QEMU": str(new_qemu)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        ).stderr
        for argv in (
            ["sh", str(script)],
            config_argv(exported("qemu-config", "sev-snp"), new_qemu),
            ["sh", str(misspelt)],
            ["sh", str(longer)],
        )
    ]
    for complaint in complaints[:2]:
        assert "SEV-SNP not supported by KVM" in complaint or "access KVM" in complaint
    assert "Invalid parameter 'kernel-digests'" in complaints[2]
    assert "parameter length of 99 not equal to 96" in complaints[3]


@pytest.mark.network
def test_the_firmware_is_proven_on_a_newer_qemu_too(
    sevkit: Sevkit, sev_guest: Path, new_qemu: Path, tmp_path: Path
) -> None:
    (tmp_path / "qemu-system-x86_64").symlink_to(new_qemu)
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = sevkit("prove", sev_guest, "--json", env={"PATH": path})
    assert result.returncode == 0, result.stdout + result.stderr
    proof = json.loads(result.stdout)
    assert proof["qemu"].startswith("10.")
    assert {row["seen"] for row in proof["cases"][1:4]} == {"refused"}
    assert {row["seen"] for row in proof["cases"][4:]} == {"passed-over"}


@pytest.mark.network
def test_the_script_boots_the_guest_on_a_newer_qemu_too(
    sevkit: Sevkit, sev_guest: Path, new_qemu: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    answer = sevkit("export", sev_guest, "qemu", "--mode", "none", "--qemu", "10.0", "-o", script)
    assert answer.returncode == 0, answer.stderr
    with started(["env", f"QEMU={new_qemu}", str(script)], tmp_path) as process:
        assert HELLO in hello_of(tmp_path / "agent.sock", process)


def xml_problems(path: Path, schema: Path) -> str:
    answer = subprocess.run(
        ["xmllint", "--noout", "--nonet", "--relaxng", str(schema), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if answer.returncode == 0 else answer.stderr


@pytest.fixture(scope="module")
def new_schema(tmp_path_factory: pytest.TempPathFactory, mirror: None) -> Path:
    """domain.rng of a libvirt that knows SEV-SNP (10.5): Debian 13's."""
    folder = tmp_path_factory.mktemp("libvirt")
    apt = Apt(folder / "apt")
    [pin] = resolve(DebSource(deb="libvirt-common", suite="trixie"), apt)
    fetch(pin, folder / pin.name, lambda *told: None, apt)
    (folder / "package").mkdir()
    unpack_deb(folder / pin.name, folder / "package")
    [schema] = (folder / "package").rglob("domain.rng")
    return schema


@pytest.mark.network
def test_libvirt_s_schema_takes_the_domain_of_every_mode(
    exported: Exported, new_schema: Path, signed: tuple[object, ...], tmp_path: Path
) -> None:
    for mode in ("none", "sev", "sev-es", "sev-snp"):
        assert xml_problems(exported("libvirt", mode), new_schema) == ""
    assert xml_problems(exported("libvirt", "sev-snp", *signed), new_schema) == ""
    broken = tmp_path / "broken.xml"
    text = exported("libvirt", "sev-snp").read_text()
    broken.write_text(text.replace("kernelHashes", "kernelDigests"))
    assert "launchSecurity" in xml_problems(broken, new_schema)


@pytest.fixture
def libvirt_home() -> Iterator[Path]:
    """A folder for a libvirtd of nobody's, reachable and short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="lv"))
    for name in ("home", "run", "cache", "c/libvirt", "c/qemu/firmware", "image"):
        (folder / name).mkdir(parents=True)
    (folder / "c/libvirt/qemu.conf").write_text('stdio_handler = "file"\n')
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def virsh_of(folder: Path) -> "Iterator[Callable[..., str]]":
    """virsh(1) on a libvirtd of its own that runs as nobody and reads nothing of the host's."""
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, NOBODY, NOBODY)
    env = {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C.UTF-8",
        "HOME": str(folder / "home"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_CONFIG_HOME": str(folder / "c"),
        "XDG_DATA_HOME": str(folder / "home"),
    }
    identity = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]

    def virsh(*words: str) -> str:
        answer = subprocess.run(
            [*identity, "virsh", "-c", "qemu:///session", "-q", *words],
            env=env,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    with (folder / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen(
            [*identity, "libvirtd"], env=env, cwd=folder, stdout=log, stderr=log
        )
    try:
        end = time.monotonic() + 30
        while not (folder / "run/libvirt/libvirt-sock").exists():
            assert daemon.poll() is None, (folder / "daemon.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield virsh
    finally:
        with contextlib.suppress(AssertionError):
            for name in virsh("list", "--name").split():
                virsh("destroy", name)
        daemon.terminate()
        daemon.wait(30)


def test_libvirtd_boots_the_domain_and_finds_the_firmware_by_its_descriptor(
    sevkit: Sevkit, sev_guest: Path, libvirt_home: Path
) -> None:
    image = libvirt_home / "image"
    for file in sev_guest.iterdir():
        shutil.copyfile(file, image / file.name)
    domain = libvirt_home / "domain.xml"
    descriptor = libvirt_home / "c/qemu/firmware/90-sevkit.json"
    for format_name, mode, out in (
        ("libvirt", "none", domain),
        ("firmware-json", "sev", descriptor),
    ):
        answer = sevkit("export", image, format_name, "--mode", mode, "-o", out)
        assert answer.returncode == 0, answer.stderr
    by_descriptor = libvirt_home / "found.xml"
    by_descriptor.write_text(
        "<domain type='qemu'><name>found</name><memory unit='MiB'>512</memory>"
        "<features><acpi/></features>"
        "<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type>"
        "<loader stateless='yes'/></os></domain>"
    )
    with virsh_of(libvirt_home) as virsh:
        offered = ElementTree.fromstring(virsh("domcapabilities", "--machine", "q35"))
        values = [one.text for one in offered.findall("os/loader/value")]
        assert str(image / "firmware.fd") in values
        argv = virsh("domxml-to-native", "qemu-argv", "--xml", str(by_descriptor))
        assert str(image / "firmware.fd") in argv
        virsh("create", str(domain))
        name = ElementTree.parse(domain).findtext("name") or ""
        end = time.monotonic() + 60
        while "state='connected'" not in virsh("dumpxml", name):
            assert time.monotonic() < end, "the agent did not open its port"
            time.sleep(0.3)


def test_libvirtd_reads_the_descriptor_for_snp_and_gives_it_to_no_guest_that_has_another(
    sevkit: Sevkit, sev_guest: Path, libvirt_home: Path
) -> None:
    folder, image = libvirt_home / "c/qemu/firmware", libvirt_home / "image"
    for file in sev_guest.iterdir():
        shutil.copyfile(file, image / file.name)
    ours = folder / "90-sevkit.json"
    answer = sevkit("export", image, "firmware-json", "--mode", "sev-snp", "-o", ours)
    assert answer.returncode == 0, answer.stderr
    distribution = json.loads(ours.read_text())
    distribution["mapping"]["filename"] = str(image / "distribution.fd")
    shutil.copyfile(image / "firmware.fd", image / "distribution.fd")
    domain = libvirt_home / "ordinary.xml"
    domain.write_text(
        "<domain type='qemu'><name>ordinary</name><memory unit='MiB'>512</memory>"
        "<features><acpi/></features>"
        "<os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os></domain>"
    )
    with virsh_of(libvirt_home) as virsh:
        convert = ("domxml-to-native", "qemu-argv", "--xml", str(domain))
        assert f"-bios {image / 'firmware.fd'}" in virsh(*convert)
        (folder / "60-distribution.json").write_text(json.dumps(distribution))
        argv = virsh(*convert)
        assert str(image / "distribution.fd") in argv
        assert str(image / "firmware.fd") not in argv


def test_what_kata_starts_without_sev_reaches_the_agent(exported: Exported, tmp_path: Path) -> None:
    hypervisor = tomllib.loads(exported("kata", "none").read_text())["hypervisor"]["qemu"]
    argv = ["qemu-system-x86_64", "-machine", hypervisor["machine_type"], "-accel", "tcg"]
    argv += ["-cpu", "max", "-m", f"{hypervisor['default_memory']}M", "-nodefaults", "-no-reboot"]
    argv += ["-display", "none", "-serial", "stdio", "-append", hypervisor["kernel_params"]]
    argv += ["-kernel", hypervisor["kernel"], "-initrd", hypervisor["initrd"]]
    with started(argv, tmp_path) as process:
        process.wait(120)
    assert b"sevkit-agent: no vsock device" in (tmp_path / "qemu.log").read_bytes()


def test_kata_s_drop_in_names_files_by_their_sha512(exported: Exported, sev_guest: Path) -> None:
    text = exported("kata", "sev-snp").read_text()
    hypervisor = tomllib.loads(text)["hypervisor"]["qemu"]
    assert hypervisor["sev_snp_guest"] is True
    prefix = "#     io.katacontainers.config.hypervisor."
    stated = dict(
        line.removeprefix(prefix).split(": ") for line in text.splitlines() if prefix in line
    )
    for word in ("kernel", "initrd", "firmware"):
        path = json.loads(stated[word])
        assert path == hypervisor[word]
        digest = subprocess.run(["sha512sum", path], capture_output=True, text=True, check=True)
        assert digest.stdout.split()[0] == json.loads(stated[f"{word}_hash"])
    assert load(sev_guest).files["kernel"].sha512 == json.loads(stated["kernel_hash"])
