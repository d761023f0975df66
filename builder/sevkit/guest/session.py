# SPDX-License-Identifier: Apache-2.0
"""One boot of one image on this host: what its manifest says, what the user asked, what works here.

Everything is settled, and every refusal made, before anything starts. Never prints.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sevkit.errors import RecipeError
from sevkit.firmware.hash_table import table_without_sev
from sevkit.guest.boot import Outcome, Setting, boot, booted, limits_for, watch
from sevkit.guest.conversation import Report, Sink
from sevkit.guest.launch import Accelerator, choose, find_qemu
from sevkit.guest.qemu import GuestSpec, parse_memory
from sevkit.guest.report import report_lines
from sevkit.guest.running import Guest
from sevkit.image.cmdline import full_cmdline
from sevkit.image.manifest import Manifest, Role, load, read_published
from sevkit.image.requirements import BOOT_DEVICES, Swiotlb, launch_problems

_BOOTED: tuple[Role, ...] = ("kernel", "initramfs", "firmware")


@dataclass(frozen=True)
class Asked:
    """What the user wants of a boot, and its workload needs."""

    memory: str | None = None
    """As people write it; without it there is room for a workload of `room_for_bytes`."""
    memory_flag: str = "--memory"
    """The option that says it."""
    room_for_bytes: int = 0
    accel: Accelerator | None = None
    rootfs: Path | None = None
    """A folder that is shared by 9p."""
    disk: Path | None = None
    """Attached read-only."""
    more_cmdline: str = ""
    """Appended to the kernel command line, and measured with it."""
    extra_args: Sequence[str] = ()
    """More arguments for QEMU."""


@dataclass(frozen=True)
class Session:
    """An image that is ready to boot."""

    manifest: Manifest
    spec: GuestSpec
    setting: Setting

    @classmethod
    def of_image(
        cls, folder: Path, asked: Asked = Asked(), *, cache: Path, log: Path | None = None
    ) -> "Session":
        """The image of a directory. `cache` is a folder of ours, `log` a file for the console.

        Raises `RecipeError` for a call that can't work, `ImageError` for an image that is
        incomplete or was changed, `HostError` for a host that can't do it.
        """
        manifest = load(folder)
        qemu = find_qemu()
        share, disk = asked.rootfs, asked.disk
        spec = spec_of(
            manifest,
            folder.absolute(),
            memory=asked.memory,
            memory_flag=asked.memory_flag,
            room_for_bytes=asked.room_for_bytes,
            more_cmdline=asked.more_cmdline,
            devices={**BOOT_DEVICES, "share": share is not None, "disk": disk is not None},
            qemu_version=qemu.version,
        )
        spec = replace(spec, disk=disk)
        launch = choose(qemu, wanted=asked.accel, modes=spec.modes, cache=cache)
        setting = Setting(
            qemu=qemu,
            launch=launch,
            limits=limits_for(launch, spec),
            rootfs=share.absolute() if share is not None else None,
            log=log,
            extra_args=tuple(asked.extra_args),
        )
        return cls(manifest, spec, setting)

    def remarks(self) -> list[str]:
        """What a user should know before the guest speaks, a line each."""
        launch, lines = self.setting.launch, []
        if self.manifest.is_debug:
            lines.append("this is a debug image: not for production")
        if not launch.is_sev and launch.passed_over:
            lines.append(f"runs under {launch.accelerator}, not encrypted")
            lines += [f"  {reason}" for reason in launch.passed_over]
        return lines + (self.manifest.remarks() if launch.is_sev else [])

    def run(
        self,
        argv: Sequence[str],
        *,
        stdout: Sink,
        stderr: Sink,
        stdin: int | None = None,
        on_report: Callable[[Report], None] = lambda _: None,
    ) -> Outcome:
        """Boot, run `argv` when it is not empty, shut down; see `sevkit.guest.boot.boot`."""
        return boot(
            self.spec,
            self.setting,
            command=argv,
            stdout=stdout,
            stderr=stderr,
            stdin=stdin,
            on_report=on_report,
        )

    def guest(self) -> contextlib.AbstractContextManager[Guest]:
        """A running guest for the length of a `with` block; see `sevkit.guest.boot.booted`."""
        return booted(self.spec, self.setting)

    def watch(self, stdout: Sink, *, until: str | None, seconds: float | None) -> float:
        """Boot and relay the console; see `sevkit.guest.boot.watch`."""
        return watch(self.spec, self.setting, stdout=stdout, until=until, limit=seconds)

    def summary(self, outcome: Outcome) -> list[str]:
        """What the guest was found to be, in some lines."""
        [first, *_] = outcome.reports
        return [
            f"{self.manifest.name} {self.manifest.version} ({self.manifest.build_id}) "
            f"under {self.setting.launch.accelerator}",
            *report_lines(first, seconds_to_report=outcome.seconds_to_report),
        ]

    def record(self, outcome: Outcome) -> Mapping[str, object]:
        """The same for programs: plain data that json.dumps() takes."""
        return {
            "name": self.manifest.name,
            "version": self.manifest.version,
            "build_id": self.manifest.build_id,
            "accelerator": self.setting.launch.accelerator,
            "memory_mib": self.spec.memory_mib,
            "agent": outcome.agent_version,
            "exit_status": outcome.exit_status,
            "seconds_to_report": round(outcome.seconds_to_report, 3),
            "seconds": round(outcome.seconds, 3),
            "reports": list(outcome.reports),
        }


def spec_of(
    manifest: Manifest,
    folder: Path,
    *,
    memory: str | None = None,
    memory_flag: str = "--memory",
    room_for_bytes: int = 0,
    more_cmdline: str = "",
    vcpus: int | None = None,
    devices: Mapping[str, int] = BOOT_DEVICES,
    qemu_version: Sequence[int] = (),
) -> GuestSpec:
    """What the manifest of the image in `folder` says about booting it.

    Memory is what the manifest takes by default, and more where the workload needs it; what is
    wrong with it is said of the option `memory_flag`. The hashes
    cover `more_cmdline` too. `devices` counts those that take bounce buffers. `qemu_version` is the
    one that will run it, 7.2 when nobody says: it decides which kernel the firmware sees.

    Raises `RecipeError` for `memory` that is impossible or too little for the devices, and for a
    command line that becomes one the kernel does not take; `ImageError` for a file that is not
    as published and a manifest whose command line no kernel takes.
    """
    needs = manifest.memory
    room = needs.minimum_mib + -(-room_for_bytes // (1 << 20))
    mib = (
        max(needs.default_mib, room)
        if memory is None
        else parse_memory(memory_flag, memory, least_mib=needs.minimum_mib)
    )
    modes = manifest.possible_modes
    hashes = manifest.firmware.kernel_hashes
    cmdline = full_cmdline(manifest, folder, [more_cmdline])
    vcpus = vcpus or manifest.launch.vcpus[0]
    swiotlb = Swiotlb.of_cmdline(cmdline)
    archive = manifest.files.get("initramfs")
    problems = launch_problems(
        needs.minimum_mib,
        swiotlb,
        held_bytes=needs.kernel_bytes + (0 if archive is None else archive.size),
        memory_mib=mib,
        vcpus=vcpus,
        devices=devices,
    )
    if problems:
        raise RecipeError(
            f"{manifest.name} can't run with {mib} MiB",
            why="\n".join(problems),
            hint=f"more with {memory_flag}, or another swiotlb= in kernel.cmdline of the recipe",
        )
    roles = [role for role in _BOOTED if role in manifest.files]
    files = {role: folder / manifest.files[role].path for role in roles}
    data = {role: read_published(folder, manifest, role) for role in roles}
    return GuestSpec(
        kernel=files["kernel"],
        initramfs=files.get("initramfs"),
        firmware=files["firmware"],
        firmware_is_flash="bios" not in manifest.firmware.loads_as,
        cmdline=cmdline,
        memory_mib=mib,
        vcpus=vcpus,
        cpu=manifest.launch.cpus[0],
        modes=modes,
        hashes_at=None if hashes is None else hashes.base,
        hashes=b"" if hashes is None else _hashes_without_sev(data, cmdline, mib, qemu_version),
        hashed_modes=tuple(mode for mode in modes if manifest.launch.modes[mode].kernel_hashes),
    )


def _hashes_without_sev(
    data: Mapping[Role, bytes], cmdline: str, memory_mib: int, qemu_version: Sequence[int]
) -> bytes:
    """The table of hashes for a launch without SEV: firmware that checks refuses without it."""
    return table_without_sev(
        data["kernel"],
        data.get("initramfs", b""),
        cmdline,
        memory_mib=memory_mib,
        qemu_version=qemu_version,
    )
