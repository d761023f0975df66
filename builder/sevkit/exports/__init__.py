# SPDX-License-Identifier: Apache-2.0
"""An image in other people's formats: a manifest in, one file of one format out.

A format is one module here and one row of `FORMATS`. Starts nothing and asks no other program.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

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


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "qemu": Format("a shell script that starts QEMU", qemu.script, starts_qemu=True),
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
    """The image in one of `FORMATS`. Raises what the format's module says."""
    return FORMATS[format_name].write(subject)
