# SPDX-License-Identifier: Apache-2.0
"""Shows whether firmware refuses what it measures: boots an image as it is, then changed.

The table of hashes is where a SEV host would put it, so that this needs no SEV: the code that
compares is the same. Every boot is under TCG and ends with what was seen of it: the guest's system
ran, or the CPU stood in a loop of the firmware. Anything else proves nothing.
"""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from sevkit.errors import ImageError
from sevkit.firmware.loaded import LoadedModules
from sevkit.guest.boot import Setting
from sevkit.guest.cases import Case, Patience, Seen, boot_all, cases_of, watch
from sevkit.guest.console import Console
from sevkit.guest.machine import Machine
from sevkit.guest.observe import Monitor
from sevkit.guest.qemu import qemu_argv
from sevkit.guest.session import Session

_KERNEL_SAYS = (b"Kernel panic", b"Initramfs unpacking failed", b"Linux version")


@dataclass(frozen=True)
class Proof:
    """All boots of an image, and what they were of. Digests are SHA-256."""

    image: str
    firmware: str
    kernel: str
    initramfs: str | None
    cmdline: str
    qemu: str
    cases: tuple[Seen, ...]

    @property
    def is_proven(self) -> bool:
        """Whether every case went as it must."""
        return all(seen.is_right for seen in self.cases)

    def text(self) -> str:
        """As JSON, every case on a line of its own."""
        head = {key: value for key, value in asdict(self).items() if key != "cases"}
        rows = [json.dumps(asdict(seen)) for seen in self.cases]
        facts = json.dumps({**head, "accelerator": "tcg", "proven": self.is_proven}, indent=2)
        return facts[:-2] + ',\n  "cases": [\n    ' + ",\n    ".join(rows) + "\n  ]\n}\n"


def prove(session: Session) -> Proof:
    """Boot every case of the image of `session`, which must run under TCG.

    Raises `ImageError` for firmware without a place for hashes, and when not even the image as it
    is boots.
    """
    spec, manifest = session.spec, session.manifest
    if spec.hashes_at is None or spec.firmware is None:
        raise ImageError(
            f"{manifest.name}: its firmware has no place for hashes: there is nothing to prove",
            hint="sevkit firmware inspect says what it has; sev-guest builds firmware that checks",
        )
    modules = LoadedModules.of_image(spec.firmware.read_bytes(), str(spec.firmware))
    with tempfile.TemporaryDirectory(prefix="sevkit-prove-") as name:
        seen = boot_all(
            list(cases_of(spec, Path(name))),
            lambda case, patience: _boot(case, session.setting, modules, patience),
        )
    if not seen[0].is_right:
        raise ImageError(f"{manifest.name} does not boot as it is", why=seen[0].evidence)
    digests = {role: file.sha256 for role, file in manifest.files.items()}
    return Proof(
        image=f"{manifest.name} {manifest.version}-{manifest.build_id}",
        firmware=digests["firmware"],
        kernel=digests["kernel"],
        initramfs=digests.get("initramfs"),
        cmdline=spec.cmdline,
        qemu=".".join(map(str, session.setting.qemu.version)),
        cases=seen,
    )


def _boot(case: Case, setting: Setting, modules: LoadedModules, patience: Patience) -> Seen:
    heard, console = bytearray(), Console()

    def machine(monitor: Monitor) -> Machine:
        return Machine(
            lambda agent, tty: qemu_argv(
                setting.qemu,
                setting.launch,
                case.spec,
                agent_fd=agent,
                console_fd=tty,
                extra_args=monitor.arguments(),
            ),
            on_agent=heard.extend,
            on_console=console.feed,
            inherited=[monitor.descriptor],
        )

    def sign(_: Machine) -> str:
        if heard:
            return "the guest speaks on the agent's port"
        said = next((text for text in _KERNEL_SAYS if console.contains(text)), b"")
        return f"the kernel says '{said.decode()}'" if said else ""

    return watch(case, machine, sign, modules, patience)
