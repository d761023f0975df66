# SPDX-License-Identifier: Apache-2.0
"""A drop-in for Kata Containers' configuration.toml, and the annotations that make it check files.

Keys: src/runtime/config/configuration-qemu-snp.toml.in and src/runtime/pkg/katautils/config.go of
Kata 3. Kata composes the kernel command line itself, so a digest of the manifest does not hold for
its guests: the drop-in says so.
"""

import json
from collections.abc import Mapping

from sevkit.errors import ImageError
from sevkit.exports.subject import Subject
from sevkit.guest.qemu import POLICIES
from sevkit.image.manifest import Role

_PREFIX = "io.katacontainers.config.hypervisor"
_ASSETS: Mapping[str, Role] = {"kernel": "kernel", "initrd": "initramfs", "firmware": "firmware"}
"""Kata's word → ours."""

_Value = str | int | bool | list[str]


def drop_in(subject: Subject) -> bytes:
    """The text of a file for Kata's config.d, beside its configuration.toml.

    Raises `ImageError` for SEV-ES, whose policy Kata can't be told, and for an initramfs that is
    linked into the kernel, which Kata would not start without another root.
    """
    if subject.mode == "sev-es":
        raise ImageError(
            "Kata can't launch a guest with sev-es",
            why="it has no setting for the policy of SEV, whose bit 2 asks for SEV-ES",
            hint="--mode sev-snp or --mode sev",
        )
    if subject.spec.initramfs is None:
        raise ImageError(
            "Kata can't start an image whose initramfs is linked into the kernel",
            why="it asks for an image or an initrd in its configuration",
            hint='set initramfs.placement = "separate" in the recipe',
        )
    lines = [f"# {note}" for note in subject.notes()]
    lines += [
        "# Kata adds words to the kernel command line: compute digests for the line that its",
        "# debug log shows. The image's process 1 must be a kata-agent; here it is "
        + json.dumps(subject.manifest.agent.name)
        + ".",
        "#",
        "# Kata checks a file only where a pod names it and its SHA-512:",
        "#   annotations:",
    ]
    lines += [f"#     {name}: {json.dumps(value)}" for name, value in annotations(subject).items()]
    for table, values in _tables(subject).items():
        lines += ["", f"[{table}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
    return "\n".join(lines).encode() + b"\n"


def annotations(subject: Subject) -> dict[str, str]:
    """The annotations of a pod that name the image's files and their SHA-512."""
    found = {}
    for word, role in _ASSETS.items():
        file = subject.manifest.files[role]
        folder = subject.spec.kernel.parent
        found[f"{_PREFIX}.{word}"] = str(folder / file.path)
        found[f"{_PREFIX}.{word}_hash"] = file.sha512
    return found


def _tables(subject: Subject) -> dict[str, dict[str, _Value]]:
    spec, is_snp = subject.spec, subject.mode == "sev-snp"
    qemu: dict[str, _Value] = {
        "kernel": str(spec.kernel),
        "initrd": str(spec.initramfs),
        "image": "",
        "firmware": str(spec.firmware),
        "firmware_volume": "",
        "machine_type": "q35",
        "kernel_params": spec.cmdline,
        "confidential_guest": subject.mode is not None,
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
        "file_mem_backend": "",
        "reclaim_guest_freed_memory": False,
        "guest_memory_dump_path": "",
        "enable_debug": subject.manifest.is_debug,
        "enable_annotations": [part for word in _ASSETS for part in (word, f"{word}_hash")],
    }
    if is_snp:
        qemu["snp_guest_policy"] = POLICIES["sev-snp"]
    return {
        "hypervisor.qemu": qemu,
        "factory": {"enable_template": False, "vm_cache_number": 0},
        "runtime": {"static_sandbox_resource_mgmt": True, "sandbox_bind_mounts": []},
    }


def _toml(value: _Value) -> str:
    """A value of TOML; its strings, numbers and lists are written as JSON's are."""
    return json.dumps(value, ensure_ascii=True)
