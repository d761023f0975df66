# SPDX-License-Identifier: Apache-2.0
"""A guest of an image under QEMU, and the tests' own end of its agent's port.

Independent of `sevkit.guest`, as agent_host.py is.
"""

import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent_host import Host

PATIENCE = 90.0
SHARE = {"type": "9p", "tag": "rootfs"}
_VIRTIO = "disable-legacy=on,iommu_platform=on"


def newc(files: dict[str, bytes]) -> bytes:
    """A cpio archive (newc) of files, for the kernel to unpack over those of another."""
    archive = bytearray()
    for name, data in {**files, "TRAILER!!!": b""}.items():
        fields = [0, 0o100644 if data else 0, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        archive += b"070701" + b"".join(b"%08x" % field for field in fields)
        for part in (name.encode() + b"\0", data):
            archive += part
            archive += bytes(-len(archive) % 4)
    return bytes(archive)


class Guest:
    """A running guest; `host` has heard its hello."""

    def __init__(self, host: Host, process: "subprocess.Popen[bytes]", console: Path) -> None:
        self.host = host
        self.process = process
        self._console = console

    def console(self) -> str:
        return self._console.read_text(errors="replace")

    def end(self) -> int:
        return self.process.wait(PATIENCE)


@contextmanager
def booted(
    image: Path,
    root: Path,
    place: Path,
    *,
    cmdline: str = "",
    overlay: dict[str, bytes] | None = None,
    memory: str = "256M",
    extra: Sequence[str] = (),
) -> Iterator[Guest]:
    """Boot `image` with `root` shared as "rootfs" and `overlay` laid over its initramfs."""
    qemu = shutil.which("qemu-system-x86_64")
    assert qemu, "qemu-system-x86 is missing: make setup installs it"
    initramfs = place / "initramfs"
    initramfs.write_bytes((image / "initramfs").read_bytes())
    if overlay:
        with initramfs.open("ab") as file:
            file.write(bytes(-file.tell() % 4) + newc(overlay))
    console = place / "console"
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    argv = [qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", memory]
    argv += ["-kernel", str(image / "vmlinuz"), "-initrd", str(initramfs)]
    argv += ["-append", f"console=ttyS0 swiotlb=force panic=-1 quiet {cmdline}"]
    argv += ["-serial", f"file:{console}", "-device", f"virtio-serial-pci,{_VIRTIO}"]
    argv += ["-chardev", f"socket,id=agent,fd={theirs.fileno()}"]
    argv += ["-device", "virtserialport,chardev=agent,name=org.sevkit.agent.0"]
    argv += ["-fsdev", f"local,id=root,path={root},security_model=none,readonly=on,multidevs=remap"]
    argv += ["-device", f"virtio-9p-pci,fsdev=root,mount_tag=rootfs,{_VIRTIO}", *extra]
    process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    with process, ours:
        try:
            host = Host(ours)
            assert host.event()["event"] == "hello"
            yield Guest(host, process, console)
        finally:
            process.kill()
