# SPDX-License-Identifier: Apache-2.0
"""The lean firmware beside the default one: size, measured bytes, start of QEMU to agent's report.

Both images have the same kernel, agent and initramfs, and boot in turns on the same QEMU, with
hashes that the firmware checks. With --again each firmware is compiled once more, in another folder
and without what the store has: seconds, and whether the bytes are the same. Needs built images:
sevkit build sev-guest sev-guest-lean
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import REPOSITORY, SEVKIT, Ratio, seconds

from sevkit.firmware.hash_table import SIZE as TABLE_BYTES

ROUNDS = 5
NAMES = ("sev-guest-lean", "sev-guest")


def main() -> None:
    """Print sizes and times of both."""
    images = {name: REPOSITORY / "output" / name / "latest" for name in NAMES}
    lean, stock = (firmware_of(images[name]) for name in NAMES)
    print(f"{'':28}{NAMES[0]:>16}{NAMES[1]:>12}")
    row("image, KiB", lean["size"] / 1024, stock["size"] / 1024)
    row("KiB measured (SEV)", encrypted(lean) / 1024, encrypted(stock) / 1024)
    row("pages measured (SNP)", pages(lean), pages(stock))
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(ROUNDS):
        for name in NAMES:
            times[name].append(boot(images[name]))
    medians = [statistics.median(times[name]) for name in NAMES]
    print(Ratio("boot to report, lean", medians[0], "default", medians[1], "the lower the better"))
    if "--again" in sys.argv:
        for name in NAMES:
            build_again(name, images[name])


def firmware_of(image: Path) -> dict[str, Any]:
    """What the manifest says of the firmware."""
    if not (image / "manifest.json").is_file():
        sys.exit(__doc__)
    manifest: dict[str, dict[str, Any]] = json.loads((image / "manifest.json").read_text())
    return manifest["firmware"]


def encrypted(firmware: dict[str, Any]) -> int:
    """Bytes that go into a SEV launch measurement: the image, and the table of kernel hashes."""
    return int(firmware["size"]) + TABLE_BYTES


def pages(firmware: dict[str, Any]) -> int:
    """Pages of 4 KiB that an SNP launch measures: the image, and each section of its metadata.

    Sections are memory, secrets, CPUID, SVSM calling area and kernel hashes: each is measured page
    by page (SNP ABI, SNP_LAUNCH_UPDATE). The page of each vCPU comes on top.
    """
    sections = firmware["metadata"] or []
    return sum(int(each["size"]) for each in [firmware, *sections]) // 4096


def boot(image: Path) -> float:
    """Seconds from the start of QEMU to the agent's report."""
    done = subprocess.run(
        [*SEVKIT, "boot", image, "--json"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{image} does not boot:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout)["seconds_to_report"])


def build_again(name: str, image: Path) -> None:
    """Compile the firmware in a store of its own; print the time, and compare the bytes."""
    with tempfile.TemporaryDirectory(prefix="sevkit-") as folder:
        env = {"SEVKIT_STORE": folder}
        seconds([*SEVKIT, "build", f"{name}:firmware-tools"], env=env)
        taken = seconds([*SEVKIT, "build", f"{name}:firmware"], env=env)
        [made] = Path(folder).glob("entries/*/*/data/firmware.fd")
        same = made.read_bytes() == (image / "firmware.fd").read_bytes()
        print(f"{name}: compiled in {taken:.0f} s, {'the same' if same else 'OTHER'} bytes")


def row(name: str, lean: float, stock: float) -> None:
    """Print one line of the table."""
    print(f"{name:28}{lean:16.0f}{stock:12.0f}   ratio {lean / stock:.2f}")


if __name__ == "__main__":
    main()
