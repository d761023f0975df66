# SPDX-License-Identifier: Apache-2.0
"""What the mission claims of every guest, looked at in guests that run."""

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sevkit.guest.session import Asked, Session

pytestmark = [pytest.mark.boots, pytest.mark.network]

REPOSITORY = Path(__file__).resolve().parents[2]
Sevkit = Callable[..., subprocess.CompletedProcess[str]]
BuildImage = Callable[..., Path]
DISK_BYTES = 20 << 20
OTHERS_SLOTS = 150
"""More than the agent's port and the share of the root take while the disk is read (some 70)."""
BOUNCED_SLOTS = 300
"""Less than reading the disk takes when it bounces (some 510)."""


def boot(sevkit: Sevkit, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return sevkit("boot", *arguments, timeout=300)


def report_of(sevkit: Sevkit, image: Path) -> dict[str, object]:
    result = boot(sevkit, image, "--json")
    assert result.returncode == 0, result.stderr
    [report, *_] = json.loads(result.stdout)["reports"]
    assert isinstance(report, dict)
    return report


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    path.write_bytes(bytes(range(256)) * (DISK_BYTES // 256))
    return path


def rise_of_high_water(image: Path, disk: Path, root: Path, cache: Path, extra: str = "") -> int:
    """By how many slots the SWIOTLB high-water mark rises while the disk is read."""
    session = Session.of_image(
        image,
        Asked(
            rootfs=root,
            extra_args=[
                "-drive",
                f"if=none,id=disk,format=raw,readonly=on,file={disk}",
                "-device",
                f"virtio-blk-pci,drive=disk,disable-legacy=on{extra}",
            ],
        ),
        cache=cache,
    )
    out, err = io.BytesIO(), io.BytesIO()
    read = "dd if=/dev/vda of=/dev/null bs=1M"
    outcome = session.run(["sh", "-c", read], stdout=out.write, stderr=err.write)
    assert outcome.exit_status == 0, err.getvalue()
    assert f"{DISK_BYTES >> 20}+0 records in".encode() in err.getvalue()
    marks = []
    for report in outcome.reports:
        swiotlb = report["swiotlb"]
        assert isinstance(swiotlb, dict)
        mark = swiotlb["hiwater_slots"]
        assert isinstance(mark, int)
        marks.append(mark)
    return marks[-1] - marks[0]


@pytest.mark.parametrize("extra", ["", ",iommu_platform=on"], ids=["not offered", "offered"])
def test_a_disk_bounces_whether_or_not_it_offers_access_platform(
    sev_guest: Path, disk: Path, busybox_root: Path, tmp_path: Path, extra: str
) -> None:
    assert rise_of_high_water(sev_guest, disk, busybox_root, tmp_path, extra) > BOUNCED_SLOTS


def test_without_our_patch_such_a_disk_does_not_bounce(
    unpatched: Path, disk: Path, busybox_root: Path, tmp_path: Path
) -> None:
    assert rise_of_high_water(unpatched, disk, busybox_root, tmp_path) < OTHERS_SLOTS
    offered = ",iommu_platform=on"
    assert rise_of_high_water(unpatched, disk, busybox_root, tmp_path, offered) > BOUNCED_SLOTS


def test_linux_6_1_bounces_too(
    build_image: BuildImage, disk: Path, busybox_root: Path, tmp_path: Path
) -> None:
    image = build_image("sev-guest", "kernel_series=6.1")
    assert rise_of_high_water(image, disk, busybox_root, tmp_path) > BOUNCED_SLOTS


@pytest.mark.parametrize(("setting", "release"), [((), "6.12."), (("kernel_series=6.1",), "6.1.")])
def test_both_kernel_series_boot(
    sevkit: Sevkit, build_image: BuildImage, setting: tuple[str, ...], release: str
) -> None:
    report = report_of(sevkit, build_image("sev-guest", *setting))
    assert str(report["kernel"]).startswith(release)


def test_the_initramfs_in_the_kernel_boots_with_no_initrd_given(
    sevkit: Sevkit, build_image: BuildImage
) -> None:
    image = build_image("sev-guest-builtin")
    assert not (image / "initramfs").exists()
    manifest = json.loads((image / "manifest.json").read_text())
    assert "initramfs" not in manifest["files"]
    assert report_of(sevkit, image)["root_fstype"] == "rootfs"
    result = boot(sevkit, image, "--", "/usr/bin/crun", "--version")
    assert (result.returncode, result.stdout[:12]) == (0, "crun version")


def test_a_foreign_init_takes_our_agents_place_by_a_recipe_of_six_lines(
    sevkit: Sevkit, build_image: BuildImage, tmp_path: Path
) -> None:
    lines = [
        "schema = 1",
        'extends = "sev-guest"',
        'name = "busybox-init"',
        'sources.busybox = { deb = "busybox-static" }',
        'agent = { source = "busybox", member = "bin/busybox" }',
        "initramfs = { debs = [], binaries = [] }",
    ]
    recipe = tmp_path / "busybox-init.toml"
    recipe.write_text("\n".join(lines) + "\n")
    image = build_image(recipe)
    said = "Please press Enter to activate this console"
    result = boot(sevkit, image, "--console", "--until", said, "--timeout", "120")
    assert result.returncode == 0, result.stderr
    assert said in result.stdout


def test_the_root_is_the_initramfs_and_nothing_in_the_guest_knows_dax(
    sevkit: Sevkit, sev_guest: Path, busybox_root: Path
) -> None:
    assert report_of(sevkit, sev_guest)["root_fstype"] == "rootfs"
    config = (sev_guest / "config").read_text()
    dax = r"^CONFIG_(DAX|(FS|FUSE|DEV|NVDIMM)_DAX\w*|(LIB)?NVDIMM|ACPI_NFIT|\w*_PMEM|ZONE_DEVICE)="
    assert not re.search(dax, config, re.M)
    assert "CONFIG_FUSE_FS=y" in config
    places = "/sys/class/dax /sys/bus/dax /sys/bus/nd /dev/pmem0 /dev/dax0.0"
    look = f"for p in {places}; do test -e $p && echo $p; done; cat /proc/cmdline /proc/mounts"
    result = boot(sevkit, sev_guest, "--rootfs", busybox_root, "--", "sh", "-c", look)
    assert result.returncode == 0, result.stderr
    assert "swiotlb=force" in result.stdout
    assert not re.search("dax|pmem|/sys/bus/nd|root=", result.stdout)


SECCOMP = """\
// SPDX-License-Identifier: Apache-2.0
// Ends whoever calls pivot_root(2), from the first instruction of the agent's main() on.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

__attribute__((constructor)) static void refuse_pivot_root(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pivot_root, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof code / sizeof *code, code};

	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
		abort();
}
"""


def test_neither_agent_nor_crun_calls_pivot_root(
    sevkit: Sevkit, build_image: BuildImage, busybox_root: Path, tmp_path: Path
) -> None:
    """Agent and crun run under a filter that kills on pivot_root, and work; the filter does too."""
    project = tmp_path / "project"
    (project / "recipes").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "agent", project / "agent")
    (project / "agent" / "refuse_pivot_root.c").write_text(SECCOMP)
    makefile = project / "agent" / "Makefile"
    makefile.write_text(makefile.read_text().replace(" utf8.c\n", " utf8.c refuse_pivot_root.c\n"))
    recipe = 'schema = 1\nextends = "sev-guest"\nname = "no-pivot"\n'
    (project / "recipes" / "no-pivot.toml").write_text(recipe)
    image = build_image("no-pivot", project=project)
    place = [image, "--rootfs", busybox_root, "--"]
    entered = boot(sevkit, *place, "whoami")
    assert (entered.returncode, entered.stdout) == (0, "root\n"), entered.stderr
    contained = sevkit("run", image, f"dir:{busybox_root}", "--", "whoami", timeout=300)
    assert (contained.returncode, contained.stdout) == (0, "root\n"), contained.stderr
    killed = boot(sevkit, *place, "pivot_root", "/tmp", "/tmp")
    assert killed.returncode == 128 + 31, killed.stderr  # SIGSYS
