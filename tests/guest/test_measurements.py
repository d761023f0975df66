# SPDX-License-Identifier: Apache-2.0
"""Every launch measurement of a real image, computed once more from the specifications."""

from pathlib import Path

import launch_digests
from launch_digests import SIGNATURES, Snp

from sevkit.image.manifest import load
from sevkit.image.shape import Manifest, Measurement


def expected(row: Measurement, manifest: Manifest, folder: Path) -> str:
    data = {role: (folder / file.path).read_bytes() for role, file in manifest.files.items()}
    table = launch_digests.hash_table(data["kernel"], data["initramfs"], manifest.cmdline)
    if row.mode == "sev":
        return launch_digests.sev(data["firmware"], table)
    assert row.cpu is not None
    assert row.vcpus is not None
    assert row.guest_features is not None
    entries = {entry.name: bytes.fromhex(entry.data) for entry in manifest.firmware.table}
    areas = launch_digests.save_areas(
        row.vcpus,
        int.from_bytes(entries["sev-es-reset"], "little"),
        SIGNATURES[row.cpu],
        row.guest_features,
        with_fpu=row.init != "KVM_SEV_INIT",
    )
    if row.mode == "sev-es":
        return launch_digests.sev(data["firmware"], table, areas)
    sections = [(one.base, one.size, one.type) for one in manifest.firmware.metadata or ()]
    chain = Snp()
    chain.firmware(data["firmware"])
    chain.sections(sections, table, int.from_bytes(entries["sev-hash-table"][:4], "little"))
    return chain.save_areas(areas)


def test_the_digests_of_the_shipped_image_are_what_the_specifications_say(
    sev_guest: Path,
) -> None:
    manifest = load(sev_guest)
    rows = manifest.measurements
    assert [sum(row.mode == mode for row in rows) for mode in manifest.possible_modes] == [1, 16, 8]
    assert "firmware" not in {row.covers for row in rows}
    for row in rows:
        assert row.digest == expected(row, manifest, sev_guest), row
