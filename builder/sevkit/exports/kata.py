# SPDX-License-Identifier: Apache-2.0
"""A drop-in for the configuration.toml of Kata Containers' Go runtime, and a pod's annotations that
make it check files.

Keys: src/runtime/config/configuration-qemu-snp.toml.in and src/runtime/pkg/katautils/config.go of
Kata 3 and 4, which refuse a key that they don't know. Kata composes the kernel command line itself
and chooses the CPU (virtcontainers/qemu_amd64.go), so a digest of the manifest does not hold for
its guests: the drop-in says so.
"""

import json
from collections.abc import Mapping

from sevkit.errors import ImageError
from sevkit.exports.subject import Subject
from sevkit.guest.qemu import POLICIES
from sevkit.image.manifest import Role

CPU = "EPYC-v4"
"""What Kata gives every SNP guest: cpuModel() in virtcontainers/qemu_amd64.go."""

_PREFIX = "io.katacontainers.config.hypervisor"
_ASSETS: Mapping[str, Role] = {"kernel": "kernel", "initrd": "initramfs", "firmware": "firmware"}
"""Kata's word → ours."""

_Value = str | int | bool | list[str]


def drop_in(subject: Subject) -> bytes:
    """The text of a file for Kata's config.d, beside its configuration.toml.

    Without SEV it names no firmware: Kata puts no hashes into memory, and firmware that checks them
    would start nothing.

    Raises `ImageError` for SEV and SEV-ES, which Kata no longer has, and for an initramfs that is
    linked into the kernel, which Kata would not start without another root.
    """
    if subject.mode in ("sev", "sev-es"):
        possible = subject.manifest.possible_modes
        raise ImageError(
            f"Kata can't launch a guest with {subject.mode}",
            why="of AMD's modes it has SEV-SNP alone; the others were removed in 2025",
            hint=f"--mode {'sev-snp' if 'sev-snp' in possible else 'none'}",
        )
    if subject.spec.initramfs is None:
        raise ImageError(
            "Kata can't start an image whose initramfs is linked into the kernel",
            why="it asks for an image or an initrd in its configuration",
            hint='set initramfs.placement = "separate" in the recipe',
        )
    names = annotations(subject)
    lines = _head(subject)
    lines += [f"#     {name}: {_toml(value)}" for name, value in names.items()]
    for table, values in _tables(subject).items():
        lines += ["", f"[{table}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        if table == "hypervisor.qemu":
            lines += _allowed([name.removeprefix(f"{_PREFIX}.") for name in names])
    return "\n".join(lines).encode() + b"\n"


def annotations(subject: Subject) -> dict[str, str]:
    """The annotations of a pod that name the image's files and their SHA-512."""
    found = {}
    for word, role in _ASSETS.items():
        if role == "firmware" and subject.mode is None:
            continue
        file = subject.manifest.files[role]
        folder = subject.spec.kernel.parent
        found[f"{_PREFIX}.{word}"] = str(folder / file.path)
        found[f"{_PREFIX}.{word}_hash"] = file.sha512
    return found


def _head(subject: Subject) -> list[str]:
    lines = [
        f"{subject.name} for Kata Containers, mode {subject.mode_name}",
        *subject.warnings(),
        "for the Go runtime of September 2025 or later: its configuration-qemu-snp.toml has a key",
        "snp_guest_policy, and an older one refuses the whole file. The runtime in Rust ignores",
        "[factory] and has it as [hypervisor.qemu.factory]",
    ]
    if subject.mode is None:
        lines.append("nothing is encrypted and nothing is measured; QEMU's own firmware starts it")
    else:
        lines += [
            "no digest of the manifest holds: Kata adds words of its own to the command line",
            f"and gives its guests the CPU {CPU}. For the command line in its debug log:",
            f"  sevkit measure {subject.manifest.name} --mode sev-snp --cpu {CPU} "
            f"--vcpus {subject.spec.vcpus} --cmdline LINE",
        ]
    lines += [
        f"process 1 must be a kata-agent; here it is {_toml(subject.manifest.agent.name)}",
        "Kata checks a file only where a pod names it and its SHA-512:",
        "  annotations:",
    ]
    return [f"# {line}" for line in lines]


def _allowed(words: list[str]) -> list[str]:
    """The list of annotations that pods may set, to be chosen by whoever runs the host."""
    return [
        "# Pods may set those annotations once the next line is no comment. Then any pod can have",
        "# any file of this host started as its kernel, initrd or firmware, and what the host",
        "# allowed before is no longer allowed: add what its pods need, as cc_init_data.",
        f"# enable_annotations = {_toml([f'^{word}$' for word in words])}",
    ]


def _tables(subject: Subject) -> dict[str, dict[str, _Value]]:
    spec, is_snp = subject.spec, subject.mode == "sev-snp"
    qemu: dict[str, _Value] = {
        "kernel": str(spec.kernel),
        "initrd": str(spec.initramfs),
        "image": "",
        "firmware": str(spec.firmware) if is_snp else "",
        "firmware_volume": "",
        "machine_type": "q35",
        "kernel_params": spec.cmdline,
        "confidential_guest": is_snp,
        "sev_snp_guest": is_snp,
        "default_vcpus": spec.vcpus,
        "default_maxvcpus": spec.vcpus,
        "default_memory": spec.memory_mib,
        "enable_iommu_platform": True,
        # What an encrypted guest can't have: shared or persistent memory, and more of it later.
        "shared_fs": "none",
        "virtio_fs_cache_size": 0,
        "disable_image_nvdimm": True,
        "enable_virtio_mem": False,
        "memory_offset": 0,
        "reclaim_guest_freed_memory": False,
        "guest_memory_dump_path": "",
        "enable_debug": subject.manifest.is_debug,
    }
    if is_snp:
        # An ID block allows one digest: that of another image would keep this one from starting.
        qemu |= {
            "snp_guest_policy": POLICIES["sev-snp"],
            "snp_id_block": "",
            "snp_id_auth": "",
        }
    return {
        "hypervisor.qemu": qemu,
        "factory": {"enable_template": False, "vm_cache_number": 0},
        "runtime": {"static_sandbox_resource_mgmt": True, "sandbox_bind_mounts": []},
    }


def _toml(value: _Value) -> str:
    """A value of TOML; its strings, numbers and lists are written as JSON's are, all printable.

    But for escapes: JSON has two for a character beyond U+FFFF, and TOML (and YAML) takes neither.
    """
    return json.dumps(value, ensure_ascii=False)
