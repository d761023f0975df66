# SPDX-License-Identifier: Apache-2.0
"""What every export starts from: one image, launched one way.

What does not hang on a format is refused here, before one is written. Reads the image directory and
nothing else of this host, so an image that was copied to another machine exports the same there.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast, get_args

from sevkit.errors import ImageError, RecipeError
from sevkit.firmware.ovmf import Mode
from sevkit.guest.launch import Accelerator, Launch
from sevkit.guest.qemu import POLICIES, GuestSpec
from sevkit.guest.session import spec_of
from sevkit.image.manifest import Manifest
from sevkit.image.published import published
from sevkit.image.shape import Measurement
from sevkit.measure.digests import SNP_ACTIVE
from sevkit.measure.id_block import IdBlock, id_block
from sevkit.printable import printable

T = TypeVar("T", int, str)

NO_MODE = "none"
MODES: tuple[str, ...] = (*get_args(Mode), NO_MODE)

C_BIT = 51
"""Bit of a page table entry that encrypts: 51 since EPYC 7002, 47 before (CPUID 8000001f EBX)."""
REDUCED_PHYS_BITS = 1
"""What a guest is told of physical address bits lost; QEMU's documentation wants 1."""


@dataclass(frozen=True)
class Subject:
    """An image and the launch it is exported for."""

    manifest: Manifest
    spec: GuestSpec
    launch: Launch
    asked_vcpus: int | None = None
    asked_cpu: str | None = None
    asked_qemu: str | None = None
    id_block: IdBlock | None = None
    """Allows this launch and no other, signed; SNP alone."""

    @property
    def mode(self) -> Mode | None:
        """The SEV mode; None for a guest whose memory is not encrypted."""
        return cast(Mode, self.launch.accelerator) if self.launch.is_sev else None

    @property
    def mode_name(self) -> str:
        """The mode as people write it."""
        return self.mode or NO_MODE

    @property
    def is_hashed(self) -> bool:
        """Whether kernel, initramfs and command line are measured in this launch."""
        return self.mode in self.spec.hashed_modes

    @property
    def name(self) -> str:
        """A name for the guest that says which image it is."""
        debug = "-debug" if self.manifest.is_debug else ""
        return f"{self.manifest.name}-{self.manifest.version}{debug}-{self.manifest.build_id}"

    def measurements(self) -> list[Measurement]:
        """The launches of the mode that the manifest has digests of, and that were asked for."""
        return [
            row
            for row in self.manifest.measurements
            if row.mode == self.mode
            and (self.asked_vcpus is None or row.vcpus in (None, self.asked_vcpus))
            and (self.asked_cpu is None or row.cpu in (None, self.asked_cpu))
        ]

    def trusted(self) -> list[Measurement]:
        """Those of `measurements` whose digest only this kernel can have, and all of them.

        Raises `ImageError` when there is none, or one that another kernel could have as well.
        """
        rows = self.measurements()
        if not rows:
            raise ImageError(
                f"the manifest lists no digest for {self.mode_name} with these vCPUs and this CPU",
                hint="add them to the section launch of its recipe",
            )
        if any(row.covers == "firmware" for row in rows):
            raise ImageError(
                "these digests are of the firmware alone: every kernel would have them",
                why="the firmware has no place for hashes of kernel, initramfs and command line",
                hint="build the image with firmware for measured boot: docs/firmware.md",
            )
        if not all(row.is_trusted for row in rows):
            raise ImageError(
                "these digests vouch for no kernel: another one may run with the same",
                why=self.manifest.firmware.doubt or "",
                hint="build the image with firmware that checks hashes: docs/measured-boot.md",
            )
        return rows

    def warnings(self) -> list[str]:
        """Why an export should not be trusted as it is, a line each."""
        lines = []
        if self.manifest.is_debug:
            lines.append("DEBUG IMAGE: not for production")
        doubt = self.manifest.firmware.doubt
        if doubt and any(row.covers == "kernel-unchecked" for row in self.measurements()):
            lines.append(doubt)
        return lines

    def notes(self) -> list[str]:
        """What a reader of the export must know, a line each: printable, without line breaks."""
        spec = self.spec
        lines = [
            f"{self.name}: {spec.memory_mib} MiB, {spec.vcpus} vCPU of {spec.cpu}, "
            f"mode {self.mode_name}"
        ]
        lines += self.warnings()
        if self.is_hashed:
            lines.append(
                "launch digests hold for exactly this kernel command line: "
                + json.dumps(spec.cmdline)
            )
        elif self.mode is not None:
            lines.append("the launch digest covers the firmware alone: not kernel nor command line")
        else:
            lines.append("nothing is encrypted and nothing is measured")
        return [printable(line) for line in lines]


def subject_of(
    folder: Path,
    *,
    mode: str | None = None,
    vcpus: int | None = None,
    cpu: str | None = None,
    memory: str | None = None,
    qemu: str | None = None,
    id_key: Path | None = None,
    author_key: Path | None = None,
) -> Subject:
    """The image in `folder` launched in `mode`; what is None is what the manifest says first.

    Without `mode` it is the strongest that the image can do. `qemu` is the version that will run
    it, 10.0, and makes a difference without SEV alone: from 10.0 on firmware sees another kernel.
    The keys sign an ID block for the launch: `sevkit.measure.id_block`.

    Raises `ImageError` for a mode that the image can't do, with the manifest's reason, for files
    that were changed, and for a folder whose name can't be printed; `RecipeError` for a number of
    vCPUs, a CPU or memory that the image is not made for, for files that are no keys, an author key
    without the other, and a version of QEMU that is none or makes no difference.
    """
    if author_key is not None and id_key is None:
        raise RecipeError("--author-key is of an ID block", hint="give --id-key too")
    version = _version(qemu)
    if not str(folder.absolute()).isprintable():
        raise ImageError(
            "the image lies in a folder whose name the formats of exports can't hold",
            why=repr(str(folder.absolute())),
            hint="copy the image to a folder with a printable name",
        )
    manifest = published(folder)
    chosen = _mode(manifest, mode)
    if qemu is not None and chosen != NO_MODE:
        raise RecipeError(
            f"--qemu makes no difference with --mode {chosen}",
            why="only without SEV does firmware see another kernel",
            hint="leave it out",
        )
    offered = manifest.launch
    spec = spec_of(
        manifest,
        folder.absolute(),
        memory=memory,
        vcpus=_listed("--vcpus", vcpus, offered.vcpus),
        qemu_version=version,
    )
    spec = replace(spec, cpu=_listed("--cpu", cpu, offered.cpus))
    if chosen == NO_MODE:
        launch = Launch("tcg")
    else:
        launch = Launch(cast(Accelerator, chosen), C_BIT, REDUCED_PHYS_BITS)
    subject = Subject(manifest, spec, launch, asked_vcpus=vcpus, asked_cpu=cpu, asked_qemu=qemu)
    if id_key is None:
        return subject
    return replace(subject, id_block=_signed(subject, id_key, author_key))


def _signed(subject: Subject, id_key: Path, author_key: Path | None) -> IdBlock:
    """The ID block of the one launch that QEMU makes of the subject."""
    if subject.mode != "sev-snp":
        raise RecipeError(
            "only SNP launches have an ID block",
            why=f"this one is for the mode {subject.mode_name}",
            hint="--mode sev-snp",
        )
    spec = subject.spec
    launch = ("qemu", spec.vcpus, spec.cpu, SNP_ACTIVE)
    for row in subject.trusted():
        if (row.vmm, row.vcpus, row.cpu, row.guest_features) == launch:
            digest = bytes.fromhex(row.digest)
            return id_block(digest, id_key, author_key, policy=POLICIES["sev-snp"])
    raise ImageError(
        "the manifest has no digest of the launch that an ID block is asked for",
        why=f"QEMU, {spec.vcpus} vCPU of {spec.cpu}, guest features {SNP_ACTIVE:#x}",
        hint="add it to the section launch of its recipe",
    )


def _version(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", text, re.ASCII) is None:
        raise RecipeError(f"--qemu: '{text}' is no version", hint="--qemu 10.0")
    return tuple(map(int, text.split(".")))


def _mode(manifest: Manifest, wanted: str | None) -> str:
    possible = manifest.possible_modes
    if wanted is None:
        strongest = [mode for mode in reversed(get_args(Mode)) if mode in possible]
        return strongest[0] if strongest else NO_MODE
    if wanted == NO_MODE or wanted in possible:
        return wanted
    raise ImageError(
        f"{manifest.name} can't be launched with {wanted}",
        why="\n".join(manifest.mode_problems(cast(Mode, wanted))),
        hint=f"--mode {possible[-1]}" if possible else "",
    )


def _listed(flag: str, wanted: T | None, offered: Sequence[T]) -> T:
    if wanted is None:
        return offered[0]
    if wanted not in offered:
        raise RecipeError(
            f"{flag}: the image is not made for {wanted}",
            why=f"its manifest lists: {', '.join(map(str, offered))}",
            hint="add it to the section launch of its recipe",
        )
    return wanted
