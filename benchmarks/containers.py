# SPDX-License-Identifier: Apache-2.0
"""What containers cost in a guest: memory, time from create to end, and bytes through a pipe.

Needs a built sev-guest and busybox-static. Under emulation times are those of the emulator.
"""

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measure import REPOSITORY

from sevkit.guest.conversation import Report
from sevkit.guest.running import Guest

ROUNDS = 10
MIB = 1 << 20


def main() -> None:
    """Print the figures."""
    from sevkit.guest.session import Asked, Session

    image = REPOSITORY / "output" / "sev-guest" / "latest"
    busybox = Path("/bin/busybox")
    if not image.exists() or not busybox.exists():
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        (root / "bin").mkdir(parents=True)
        for name in ("dev", "proc", "sys"):
            (root / name).mkdir()
        shutil.copy(busybox, root / "bin" / "busybox")
        data = Path(scratch) / "data"
        data.write_bytes(bytes(64 * MIB))
        session = Session.of_image(image, Asked(rootfs=root), cache=Path(scratch))
        with session.guest() as guest:
            print(f"accelerator             {session.setting.launch.accelerator}")
            before = used(guest.report())
            print(f"guest memory, ready     {before:10.1f} MiB")
            report = guest.report()
            print(f"agent resident          {int(str(report['agent_rss_kib'])) / 1024:10.1f} MiB")
            seconds = [once(guest, ["busybox", "true"]) for _ in range(ROUNDS)]
            print(f"create to deleted       {statistics.median(seconds):10.2f} s")
            with data.open("rb") as file:
                took = once(guest, ["busybox", "cat"], stdin=file.fileno())
            print(f"64 MiB in and out       {128 / took:10.1f} MiB/s")
            print(f"guest memory, after     {used(guest.report()):10.1f} MiB")
            guest.shut_down()


def once(guest: Guest, argv: list[str], stdin: int | None = None) -> float:
    """Seconds that a container takes from `create` to the answer of `delete`."""
    from sevkit.guest.qemu import ROOTFS_TAG
    from sevkit.guest.running import Streams
    from sevkit.oci.config import Overrides, runtime_config

    started = time.monotonic()
    config = runtime_config({}, Overrides(argv=argv))
    process = guest.create("one", Streams(stdin=stdin), config=config, share=ROOTFS_TAG)
    guest.start("one")
    assert guest.wait(process).exit_status == 0
    guest.delete("one")
    return time.monotonic() - started


def used(report: Report) -> float:
    """MiB in use without page cache."""
    memory = report["memory"]
    assert isinstance(memory, dict)
    return int(str(memory["used_kib"])) / 1024


if __name__ == "__main__":
    main()
