# SPDX-License-Identifier: Apache-2.0
"""Launch measurements: what the secure processor will say of a launch, computed beforehand.

One digest belongs to one mode, number of vCPUs, CPU model, set of features, monitor and, byte for
byte, one command line. The arithmetic is that of sev-snp-measure; what it takes on trust is checked
here first. Starts and signs nothing, and calls no boot measured that its firmware does not check.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from sevkit.errors import ImageError, RecipeError
from sevkit.firmware import hash_table
from sevkit.firmware.ovmf import FirmwareFacts, Mode, parse

Vmm = Literal["qemu", "ec2", "gce"]
"""Whose virtual machine monitor: they start vCPUs with different registers."""

Init = Literal["KVM_SEV_INIT", "KVM_SEV_INIT2"]
"""The call that QEMU makes a SEV-ES guest with: the second, of Linux 6.10 and QEMU 9.1, has the
state of the floating-point unit measured too (sev_es_sync_vmsa() in arch/x86/kvm/svm/sev.c; QEMU's
property legacy-vm-type of sev-guest)."""

Cpu = Literal[
    "EPYC",
    "EPYC-v1",
    "EPYC-v2",
    "EPYC-v3",
    "EPYC-v4",
    "EPYC-IBPB",
    "EPYC-Rome",
    "EPYC-Rome-v1",
    "EPYC-Rome-v2",
    "EPYC-Rome-v3",
    "EPYC-Milan",
    "EPYC-Milan-v1",
    "EPYC-Milan-v2",
    "EPYC-Genoa",
    "EPYC-Genoa-v1",
    "EPYC-Turin",
]
"""The CPU models that QEMU and sev-snp-measure (0.0.13) both know."""

Covers = Literal["kernel", "kernel-unchecked", "firmware"]
"""What a digest vouches for. ``kernel``: firmware, kernel, initramfs and command line.
``firmware``: nothing else, any kernel gives the same digest. ``kernel-unchecked``: hashes of all
are in the digest, but the firmware was not shown to compare them with what it starts."""

CPUS: tuple[str, ...] = get_args(Cpu)
INITS: tuple[Init, ...] = get_args(Init)

SNP_ACTIVE, DEBUG_SWAP = 0x1, 0x20
"""Bits of SEV_FEATURES (AMD APM volume 2, table B-4)."""

_FEATURES = sum(1 << bit for bit in (*range(11), 12, 14, 15, 16, 21))
"""Those that are not reserved, up to IBPB on entry. Linux's MSR_AMD64_SNP_*_BIT, which say the same
of a guest's SEV_STATUS, are two higher (arch/x86/include/asm/msr-index.h)."""

COMMAND_LINE_BYTES = 2047
"""arch/x86/include/asm/setup.h: COMMAND_LINE_SIZE is 2048, its NUL included."""

_PAGE = 4096
_SECRETS, _CPUID, _KERNEL_HASHES = 2, 3, 16
_KNOWN_SECTIONS = (1, 2, 3, 4, 16)


@dataclass(frozen=True)
class Boot:
    """What is launched, as its bytes: they are measured as they were checked.

    `initrd` is None when the kernel holds its initramfs.
    """

    name: str
    """What errors call the firmware."""
    firmware: bytes
    kernel: bytes
    initrd: bytes | None
    cmdline: str
    verifies: bool | None = None
    """Whether the firmware was shown to refuse what does not fit the hashes."""


@dataclass(frozen=True)
class Wanted:
    """The launches to measure: every combination that exists, once.

    Of the features SEV-ES takes DebugSwap alone; `inits` are of SEV-ES.
    """

    modes: Sequence[Mode]
    vcpus: Sequence[int]
    cpus: Sequence[str]
    guest_features: Sequence[int] = (SNP_ACTIVE,)
    vmms: Sequence[Vmm] = ("qemu",)
    inits: Sequence[Init] = INITS


@dataclass(frozen=True)
class Measurement:
    """One launch and its digest; None where the digest does not depend on it."""

    mode: Mode
    vcpus: int | None
    cpu: str | None
    guest_features: int | None
    """SEV_FEATURES of every vCPU."""
    vmm: Vmm
    init: Init | None
    covers: Covers
    digest: str
    """Hex: 32 bytes, the launch measurement before its HMAC (SEV API, LAUNCH_MEASURE), for sev and
    sev-es; 48 bytes, the launch digest (SNP ABI 8.17.2), for sev-snp."""

    def record(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return asdict(self)

    @property
    def title(self) -> str:
        """What is launched, for people."""
        words: list[str] = [self.mode]
        if self.cpu is not None:
            words += [self.cpu, f"{self.vcpus} vCPU{'s' if self.vcpus != 1 else ''}"]
        if self.guest_features is not None:
            words.append(f"features {self.guest_features:#x}")
        if self.init is not None:
            words.append(self.init)
        return ", ".join([*words, self.vmm])


def cmdline_problem(cmdline: str) -> str | None:
    """Why a kernel can't be given this command line; None when it can."""
    if "\0" in cmdline:
        return "has a NUL, where it would end"
    if not cmdline.isascii() or not cmdline.isprintable():
        return "must be printable ASCII"
    if cmdline.count('"') % 2:
        return 'has a quote (") without its partner'
    if len(cmdline) > COMMAND_LINE_BYTES:
        return f"is {len(cmdline)} bytes, the kernel takes {COMMAND_LINE_BYTES}"
    return None


def features_problem(features: int) -> str | None:
    """Why no vCPU of an SNP guest starts with these SEV_FEATURES; None when one does."""
    if not features & SNP_ACTIVE:
        return "must have bit 0 (SNPActive) set"
    if features & ~_FEATURES:
        return f"sets the reserved bits {features & ~_FEATURES & (1 << 64) - 1:#x}"
    return None


def measure(boot: Boot, wanted: Wanted) -> list[Measurement]:
    """The digests of all `wanted` launches, in the order of what is wanted.

    Raises `RecipeError` for a launch that does not exist (a feature, a command line), `ImageError`
    for firmware that is none or can't be launched in a mode that is wanted.
    """
    _check_wanted(wanted)
    if problem := cmdline_problem(boot.cmdline):
        raise RecipeError(f"the command line {problem}", why=repr(boot.cmdline)[:200])
    launch = _Launch(boot)
    try:
        rows = (row for mode in wanted.modes for row in launch.rows(mode, wanted))
        return list(dict.fromkeys(rows))
    except (AssertionError, ValueError, RuntimeError, LookupError) as error:
        raise ImageError(
            f"{boot.name} can't be measured", why=f"sev-snp-measure: {error!r}"
        ) from error


def _check_wanted(wanted: Wanted) -> None:
    for vcpus in wanted.vcpus:
        if not 1 <= vcpus <= 512:
            raise RecipeError(f"{vcpus} is no number of vCPUs", hint="give 1 to 512")
    for cpu in wanted.cpus:
        if cpu not in CPUS:
            raise RecipeError(f"{cpu} is none of the CPU models {', '.join(CPUS)}")
    active = 0 if "sev-snp" in wanted.modes else SNP_ACTIVE
    for features in wanted.guest_features:
        if problem := features_problem(features | active):
            raise RecipeError(
                f"guest features {features:#x}: {problem}",
                hint=f"{SNP_ACTIVE:#x}, or {SNP_ACTIVE | DEBUG_SWAP:#x} with DebugSwap",
            )


class _Launch:
    """One firmware with one kernel: what its digests share is computed once."""

    def __init__(self, boot: Boot):
        self._boot = boot
        self._facts: FirmwareFacts = parse(boot.firmware, boot.name)

    @cached_property
    def _ovmf(self) -> Any:
        from sevsnpmeasure.ovmf import OVMF

        with _as_file(self._boot.firmware) as firmware:
            return OVMF(firmware)

    @cached_property
    def _hashes(self) -> Any:
        from sevsnpmeasure.sev_hashes import SevHashes

        with _as_file(self._boot.kernel) as kernel, _as_file(self._boot.initrd or b"") as initrd:
            return SevHashes(kernel, initrd, self._boot.cmdline)

    @cached_property
    def _firmware_pages(self) -> bytes:
        """The SNP digest after the firmware's own pages."""
        from sevsnpmeasure.gctx import GCTX

        chain = GCTX()
        chain.update_normal_pages(self._ovmf.gpa(), self._ovmf.data())
        return bytes(chain.ld())

    def covers(self, mode: Mode) -> Covers:
        place = self._facts.kernel_hashes
        if place is None or (mode == "sev-snp" and not place.for_snp):
            return "firmware"
        return "kernel" if self._boot.verifies else "kernel-unchecked"

    def rows(self, mode: Mode, wanted: Wanted) -> Iterator[Measurement]:
        self._check(mode)
        if mode == "sev":
            if "qemu" in wanted.vmms:
                yield self._row(mode, None, None, None, "qemu", None, self._sev())
        elif mode == "sev-es":
            if "qemu" in wanted.vmms:
                yield from self._sev_es_rows(wanted)
        else:
            yield from self._snp_rows(wanted)

    def _row(
        self,
        mode: Mode,
        vcpus: int | None,
        cpu: str | None,
        features: int | None,
        vmm: Vmm,
        init: Init | None,
        digest: bytes,
    ) -> Measurement:
        return Measurement(mode, vcpus, cpu, features, vmm, init, self.covers(mode), digest.hex())

    def _sev_es_rows(self, wanted: Wanted) -> Iterator[Measurement]:
        features = sorted({each & DEBUG_SWAP for each in wanted.guest_features})
        for init in wanted.inits:
            for cpu in wanted.cpus:
                for vcpus in wanted.vcpus:
                    for each in features if init == "KVM_SEV_INIT2" else (0,):
                        pages = b"".join(self._save_areas("sev-es", vcpus, cpu, each, "qemu", init))
                        digest = self._sev(pages)
                        yield self._row("sev-es", vcpus, cpu, each, "qemu", init, digest)

    def _snp_rows(self, wanted: Wanted) -> Iterator[Measurement]:
        from sevsnpmeasure.gctx import GCTX
        from sevsnpmeasure.guest import snp_update_metadata_pages

        for vmm in wanted.vmms:
            chain = GCTX(seed=self._firmware_pages)
            hashes = self._hashes if self.covers("sev-snp") != "firmware" else None
            snp_update_metadata_pages(chain, self._ovmf, hashes, _vmm_type(vmm))
            before = chain.ld()
            for cpu in wanted.cpus:
                for vcpus in wanted.vcpus:
                    for features in wanted.guest_features:
                        chain = GCTX(seed=before)
                        for page in self._save_areas("sev-snp", vcpus, cpu, features, vmm, None):
                            chain.update_vmsa_page(page)
                        digest = bytes(chain.ld())
                        yield self._row("sev-snp", vcpus, cpu, features, vmm, None, digest)

    def _sev(self, save_areas: bytes = b"") -> bytes:
        """SHA-256 of what is encrypted in place, in its order (SEV API, LAUNCH_UPDATE_*)."""
        whole = hashlib.sha256(self._ovmf.data())
        if self.covers("sev") != "firmware":
            whole.update(self._hashes.construct_table())
        whole.update(save_areas)
        return whole.digest()

    def _save_areas(
        self, mode: Mode, vcpus: int, cpu: str, features: int, vmm: Vmm, init: Init | None
    ) -> Iterator[bytes]:
        from sevsnpmeasure.sev_mode import SevMode
        from sevsnpmeasure.vcpu_types import CPU_SIGS
        from sevsnpmeasure.vmsa import VMSA

        areas = VMSA(
            SevMode.from_str(mode),
            self._ovmf.sev_es_reset_eip(),
            CPU_SIGS[cpu],
            features,
            _vmm_type(vmm),
        )
        if init == "KVM_SEV_INIT":
            for area in (areas.bsp_save_area, areas.ap_save_area):
                area.mxcsr = area.x87_fcw = 0
        yield from areas.pages(vcpus)

    def _check(self, mode: Mode) -> None:
        name, place = self._boot.name, self._facts.kernel_hashes
        problems = list(self._facts.problems[mode])
        has_metadata = any(entry.name == "sev-metadata" for entry in self._facts.table)
        if has_metadata and self._facts.metadata is None and not problems:
            problems.append("its SEV metadata are of a version that is not known here")
        if place is not None and place.base % _PAGE + hash_table.SIZE > _PAGE:
            problems.append("its place for kernel hashes crosses a page")
        for section in (self._facts.metadata or ()) if mode == "sev-snp" else ():
            is_single = section.type in (_SECRETS, _CPUID, _KERNEL_HASHES)
            if section.type not in _KNOWN_SECTIONS:
                problems.append(f"its SEV metadata have a section of unknown type {section.type}")
            elif (section.base | section.size) % _PAGE or (is_single and section.size != _PAGE):
                problems.append(f"section {section.name} of its SEV metadata is not of whole pages")
        if problems:
            raise ImageError(f"{name} can't be launched with {mode}", why="\n".join(problems))


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path of `data` for this process alone: sev-snp-measure reads files."""
    with os.fdopen(os.memfd_create("sevkit"), "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _vmm_type(vmm: Vmm) -> Any:
    from sevsnpmeasure.vmm_types import VMMType

    return {"qemu": VMMType.QEMU, "ec2": VMMType.ec2, "gce": VMMType.gce}[vmm]
