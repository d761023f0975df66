# SPDX-License-Identifier: Apache-2.0
"""The launch digests of an image directory: its own, others, signed, held against its manifest.

Nothing is measured but the bytes that the manifest names; a file that was replaced is an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sevkit.errors import ImageError, RecipeError
from sevkit.image.claims import contradictions
from sevkit.image.cmdline import full_cmdline
from sevkit.image.manifest import MANIFEST, Role, read_published
from sevkit.image.shape import Manifest
from sevkit.measure.digests import Boot, Measurement, Wanted, measure
from sevkit.measure.id_block import IdBlock, id_block

_MEASURED: tuple[Role, ...] = ("firmware", "kernel", "initramfs")


def wanted_of(manifest: Manifest) -> Wanted:
    """The launches that an image is meant for, in the modes that it can do."""
    launch = manifest.launch
    return Wanted(
        modes=manifest.possible_modes,
        vcpus=launch.vcpus,
        cpus=launch.cpus,
        guest_features=launch.guest_features,
        vmms=launch.vmms,
    )


def measure_image(
    folder: Path,
    manifest: Manifest,
    *,
    wanted: Wanted | None = None,
    cmdline: str | None = None,
    append: Sequence[str] = (),
) -> list[Measurement]:
    """The digests of an image in `folder`: for the launches of its manifest, or those `wanted`.

    `cmdline`: what the runtime gives the kernel instead of the manifest's line.
    `append`: words that it adds, each after a blank.

    Raises `ImageError` when a file is not what the manifest says of it, `RecipeError` for a launch
    that can't be, and where there is none of those `wanted`.
    """
    line = full_cmdline(manifest, folder, append, instead=cmdline)
    asked = wanted or wanted_of(manifest)
    for mode in asked.modes:
        if problems := manifest.launch.modes[mode].problems:
            raise ImageError(
                f"{manifest.name} can't be launched with {mode}", why="\n".join(problems)
            )
    checked = _checked(folder, manifest)
    name = str(folder / manifest.files["firmware"].path)
    if lines := list(contradictions(manifest, checked["firmware"], name)):
        raise ImageError(
            f"{folder / MANIFEST} says of the firmware what it is not",
            why="\n".join(lines),
            hint="build the image again: it was edited",
        )
    boot = Boot(
        name=name,
        firmware=checked["firmware"],
        kernel=checked["kernel"],
        initrd=checked.get("initramfs"),
        cmdline=line,
        verifies=manifest.firmware.verifies_kernel_hashes,
    )
    rows = measure(boot, asked)
    if wanted is not None and not rows:
        raise RecipeError(
            "there is no such launch", hint="ec2 and gce know sev-snp only: --mode sev-snp"
        )
    return rows


def id_blocks(
    rows: Sequence[Measurement],
    id_key: Path | None,
    *,
    author_key: Path | None = None,
    policy: int | None = None,
    guest_svn: int | None = None,
    family_id: bytes | None = None,
    image_id: bytes | None = None,
) -> list[IdBlock | None]:
    """The ID block of each launch, signed with `id_key`; None for one without: SNP launches alone
    have them, and without `id_key` none. What is None is as `sevkit.measure.id_block` has it.

    Raises `RecipeError` where nothing would be signed of what is asked, and what that says.
    """
    options = {
        "author_key": author_key,
        "policy": policy,
        "guest_svn": guest_svn,
        "family_id": family_id,
        "image_id": image_id,
    }
    stated: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if id_key is None:
        for key in stated:
            flag = f"--{key}".replace("_", "-")
            raise RecipeError(f"{flag} is of an ID block", hint="give --id-key too")
        return [None for _ in rows]
    if not any(row.mode == "sev-snp" for row in rows):
        raise RecipeError("only SNP launches have an ID block", hint="measure --mode sev-snp")
    return [
        id_block(bytes.fromhex(row.digest), id_key, **stated) if row.mode == "sev-snp" else None
        for row in rows
    ]


def measurement_differences(folder: Path, manifest: Manifest) -> list[str]:
    """What differs between the digests of a manifest and those of its files, a line each."""
    try:
        found = {_launch(row): row for row in measure_image(folder, manifest)}
    except (ImageError, RecipeError) as error:
        return [": ".join([error.what, *error.why.splitlines()])]
    stated = {
        _launch(row): row for row in (Measurement(**m.model_dump()) for m in manifest.measurements)
    }
    lines = [
        f"{MANIFEST}: lacks the measurement of {_titled(found, key)}"
        for key in found.keys() - stated
    ]
    lines += [
        f"{MANIFEST}: measures what is not asked: {_titled(stated, key)}"
        for key in stated.keys() - found
    ]
    for key in found.keys() & stated.keys():
        if found[key] != stated[key]:
            lines.append(
                f"{MANIFEST}: {found[key].title}: measures {found[key].digest} "
                f"({found[key].covers}), not {stated[key].digest} ({stated[key].covers})"
            )
    return sorted(lines)


def _launch(row: Measurement) -> Measurement:
    return replace(row, digest="", covers="firmware")


def _titled(rows: Mapping[Measurement, Measurement], key: Measurement) -> str:
    return rows[key].title


def _checked(folder: Path, manifest: Manifest) -> dict[Role, bytes]:
    """Role → bytes of the files that are measured, read once and as the manifest says."""
    return {
        role: read_published(folder, manifest, role) for role in _MEASURED if role in manifest.files
    }
