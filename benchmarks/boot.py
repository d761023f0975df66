# SPDX-License-Identifier: Apache-2.0
"""Our guest beside Debian's cloud kernel with its initramfs-tools initrd, on the same QEMU.

Start of QEMU to our agent's report, against start of QEMU to the shell of Debian's initrd; sizes;
memory in use without page cache. Needs a built sev-guest, and Debian's kernel:
apt-get install linux-image-cloud-amd64 initramfs-tools busybox-static
"""

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measure import REPOSITORY, Ratio

ROUNDS = 3
MEMORY = "512M"
PROMPT = b"(initramfs)"
MIB = 1 << 20
PUBLISHED = {"runV": 13.0, "Kata Containers": 55.0}
"""Guest memory in use after boot, in MB, as others measured it."""


def main() -> None:
    """Print sizes, times and memory of both."""
    image = REPOSITORY / "output" / "sev-guest" / "latest"
    kernels = sorted(Path("/boot").glob("vmlinuz-*cloud-amd64"))
    if not kernels:
        sys.exit(__doc__)
    kernel = kernels[-1]
    initrd = kernel.with_name(kernel.name.replace("vmlinuz", "initrd.img"))
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(boot_ours(image))
        theirs.append(boot_debian(kernel, initrd))
    print(f"{'':24}{'sev-guest':>12}{'Debian cloud':>14}")
    row("kernel, MiB", size(image / "vmlinuz"), size(kernel))
    row("initramfs packed, MiB", size(image / "initramfs"), size(initrd))
    row("memory in use, MiB", median(ours, 1), median(theirs, 1))
    print("memory in use when the agent is ready, beside what others published:")
    for name, mib in (("sev-guest", median(ours, 1)), *PUBLISHED.items()):
        print(f"  {name:22}{mib:12.1f} MiB")
    bound = "the lower the better"
    print(Ratio("boot to report", median(ours, 0), "Debian to shell", median(theirs, 0), bound))


def boot_ours(image: Path) -> tuple[float, float]:
    """Seconds to the report without firmware, as Debian's is booted, and MiB in use."""
    from sevkit.guest.session import Asked, Session

    session = Session.of_image(image, Asked(memory=MEMORY), cache=Path("/tmp"))
    spec = {**session.spec.__dict__, "firmware": None}
    bare = type(session)(session.manifest, type(session.spec)(**spec), session.setting)
    outcome = bare.run([], stdout=sys.stdout.buffer.write, stderr=sys.stderr.buffer.write)
    report = json.loads(json.dumps(outcome.reports[0]))
    return outcome.seconds_to_report, report["memory"]["used_kib"] / 1024


def boot_debian(kernel: Path, initrd: Path) -> tuple[float, float]:
    """Seconds to the prompt of the initrd's shell, and MiB in use there."""
    started = time.monotonic()
    machine = "-nodefaults -no-reboot -display none -machine q35,vmport=off -accel tcg -cpu max"
    files = ["-kernel", str(kernel), "-initrd", str(initrd), "-serial", "stdio"]
    cmdline = "console=ttyS0 quiet break=top"
    process = subprocess.Popen(
        ["qemu-system-x86_64", *machine.split(), "-m", MEMORY, *files, "-append", cmdline],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        read_until(process, PROMPT)
        seconds = time.monotonic() - started
        process.stdin.write(b"mount -t proc proc /proc; cat /proc/meminfo; echo e''nd\n")
        text = read_until(process, b"\nend")
        process.kill()
    values = {name: int(kib) for name, kib in re.findall(r"^(\w+): +(\d+) kB", text, re.M)}
    free = values["MemFree"] + values["Buffers"] + values["Cached"] + values["SReclaimable"]
    return seconds, (values["MemTotal"] - free) / 1024


def read_until(process: "subprocess.Popen[bytes]", text: bytes) -> str:
    """What the guest says until `text` appeared."""
    said = b""
    assert process.stdout is not None
    while text not in said:
        said += process.stdout.read(4096) or sys.exit("Debian's guest ended too early")
    return said.decode("utf-8", "replace").replace("\r", "")


def median(rows: list[tuple[float, float]], column: int) -> float:
    """The median of a column."""
    return statistics.median(row[column] for row in rows)


def size(path: Path) -> float:
    """A file's size in MiB."""
    return path.stat().st_size / MIB


def row(name: str, ours: float, theirs: float) -> None:
    """Print one line of the table."""
    print(f"{name:24}{ours:12.2f}{theirs:14.2f}   ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
