# SPDX-License-Identifier: Apache-2.0
"""An image in other people's formats: a manifest in, one file of one format out.

A format is one module here and one row of `FORMATS`. Starts nothing and asks no other program.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sevkit.errors import RecipeError
from sevkit.exports import firmware_json, kata, libvirt, qemu, reference_values, slsa
from sevkit.exports.subject import MODES, Subject, subject_of

__all__ = ["FORMATS", "MODES", "Format", "Subject", "exported", "subject_of"]


@dataclass(frozen=True)
class Format:
    """One format: what it is for, and what writes it."""

    summary: str
    write: Callable[[Subject], bytes]
    starts_qemu: bool = False
    """Whether it says how QEMU is started: then it holds what firmware finds in memory, which
    depends on QEMU's version without SEV, and the ID block of an SNP launch."""
    file_mode: int = 0o644
    """Of a file with it: whether one can run it."""


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "qemu": Format(
            "a shell script that starts QEMU", qemu.script, starts_qemu=True, file_mode=0o755
        ),
        "qemu-config": Format("a file for QEMU's -readconfig", qemu.config_file, starts_qemu=True),
        "libvirt": Format("the XML of a libvirt domain", libvirt.domain, starts_qemu=True),
        "firmware-json": Format("QEMU's firmware descriptor", firmware_json.descriptor),
        "kata": Format("a drop-in for Kata's configuration.toml", kata.drop_in),
        "rvps": Format("reference values for trustee", reference_values.rvps_message),
        "corim": Format("reference values as CoRIM, experimental", reference_values.corim),
        "slsa": Format("SLSA provenance: where the image comes from", slsa.provenance),
    }
)


def exported(subject: Subject, format_name: str) -> bytes:
    """The image in one of `FORMATS`.

    Raises `RecipeError` for an ID block that the format does not hold, and for a version of QEMU
    that makes no difference to it; else what the format's module says.
    """
    chosen = FORMATS[format_name]
    if subject.id_block is not None and not chosen.starts_qemu:
        raise RecipeError(
            f"--id-key: the format {format_name} holds no ID block",
            hint="qemu and libvirt do; sevkit measure --id-key prints it for other launches",
        )
    if subject.asked_qemu is not None and not chosen.starts_qemu:
        raise RecipeError(f"--qemu makes no difference to {format_name}", hint="leave it out")
    return chosen.write(subject)
