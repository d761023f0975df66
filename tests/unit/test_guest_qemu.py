# SPDX-License-Identifier: Apache-2.0
"""The QEMU command line: what every guest gets, and what each way of launching adds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sevkit.errors import HostError, RecipeError
from sevkit.guest.launch import Accelerator, Launch, Qemu
from sevkit.guest.qemu import GuestSpec, parse_memory, qemu_argv

QEMU = Qemu(Path("/usr/bin/qemu-system-x86_64"), (9, 1, 0))


def spec(**changes: Any) -> GuestSpec:
    facts: dict[str, Any] = {
        "kernel": Path("/image/vmlinuz"),
        "initramfs": Path("/image/initramfs"),
        "firmware": Path("/image/firmware.fd"),
        "cmdline": "console=ttyS0 swiotlb=force",
        "hashed_modes": ("sev", "sev-es", "sev-snp"),
    }
    return GuestSpec(**facts | changes)


def argv(accelerator: Accelerator, guest: GuestSpec | None = None, **options: Any) -> list[str]:
    launch = Launch(accelerator, c_bit=51, reduced_phys_bits=5)
    facts: dict[str, Any] = {"agent_fd": 5, "console_fd": 6}
    return qemu_argv(QEMU, launch, guest or spec(), **facts | options)


def values(arguments: Sequence[str], option: str) -> list[str]:
    return [arguments[i + 1] for i, word in enumerate(arguments) if word == option]


@pytest.mark.parametrize("accelerator", ["tcg", "kvm", "sev", "sev-es", "sev-snp"])
def test_every_virtio_device_offers_access_platform(accelerator: Accelerator) -> None:
    made = argv(accelerator, rootfs=Path("/srv/root"))
    devices = [each for each in values(made, "-device") if each.startswith("virtio-")]
    assert [each.split(",")[0] for each in devices] == ["virtio-serial-pci", "virtio-9p-pci"]
    assert all("disable-legacy=on,iommu_platform=on" in each for each in devices)


@pytest.mark.parametrize("accelerator", ["tcg", "kvm", "sev", "sev-es", "sev-snp"])
def test_a_guest_gets_the_command_line_of_the_image_and_no_network(
    accelerator: Accelerator,
) -> None:
    made = argv(accelerator)
    assert values(made, "-append") == ["console=ttyS0 swiotlb=force"]
    assert values(made, "-kernel") == ["/image/vmlinuz"]
    assert values(made, "-initrd") == ["/image/initramfs"]
    assert "-nodefaults" in made
    assert not any("net" in each for each in values(made, "-device"))


def test_firmware_lies_where_each_mode_takes_it() -> None:
    for is_flash in (True, False):
        guest = spec(firmware_is_flash=is_flash)
        assert guest.in_flash("sev")
        assert guest.in_flash("sev-es")
        assert not guest.in_flash("sev-snp")
        assert [guest.in_flash(plain) for plain in (None, "kvm", "tcg")] == [is_flash] * 3


def test_hashes_are_put_into_memory_where_no_sev_host_does_it() -> None:
    guest = spec(hashes_at=0x810C00, hashes=bytes(range(16)))
    for plain in ("tcg", "kvm"):
        loaded = [each for each in values(argv(plain, guest), "-device") if "loader" in each]
        assert loaded == [
            "loader,addr=0x810c00,data=0x706050403020100,data-len=8",
            "loader,addr=0x810c08,data=0xf0e0d0c0b0a0908,data-len=8",
        ]
    for sev in ("sev", "sev-es", "sev-snp"):
        assert "loader" not in str(argv(sev, guest))
        assert "kernel-hashes=on" in str(argv(sev, guest))
    assert "loader" not in str(argv("tcg", spec(firmware=None, hashes_at=0x810C00)))


def test_a_builtin_initramfs_is_not_given() -> None:
    assert "-initrd" not in argv("tcg", spec(initramfs=None))


@pytest.mark.parametrize(
    ("accelerator", "guest", "irqchip"),
    [
        ("sev", "sev-guest,id=sev0,cbitpos=51,reduced-phys-bits=5,policy=0x1", False),
        ("sev-es", "sev-guest,id=sev0,cbitpos=51,reduced-phys-bits=5,policy=0x5", False),
        ("sev-snp", "sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=5,policy=0x30000", True),
    ],
)
def test_a_launch_with_sev_has_its_guest_object(
    accelerator: Accelerator, guest: str, irqchip: bool
) -> None:
    made = argv(accelerator, spec(cpu="EPYC-Milan"))
    assert values(made, "-object") == [f"{guest},kernel-hashes=on"]
    [machine] = values(made, "-machine")
    assert machine.startswith("q35,confidential-guest-support=sev0,vmport=off")
    assert machine.endswith(",kernel_irqchip=split") is irqchip
    assert values(made, "-cpu") == ["EPYC-Milan"]
    assert values(made, "-accel") == ["kvm"]


def test_sev_reads_its_firmware_from_one_read_only_flash_and_snp_from_bios() -> None:
    for accelerator in ("sev", "sev-es"):
        made = argv(accelerator)
        assert values(made, "-drive") == [
            "if=pflash,format=raw,unit=0,readonly=on,file=/image/firmware.fd"
        ]
        assert "-bios" not in made
    made = argv("sev-snp")
    assert values(made, "-bios") == ["/image/firmware.fd"]
    assert "-drive" not in made


def test_the_code_half_of_a_split_firmware_goes_to_flash_without_sev_too() -> None:
    assert "-drive" not in argv("tcg")
    made = argv("tcg", spec(firmware_is_flash=True))
    assert "readonly=on,file=/image/firmware.fd" in values(made, "-drive")[0]
    assert "-bios" not in made


def test_hashes_are_not_asked_of_firmware_that_has_no_table_for_them() -> None:
    assert "kernel-hashes" not in str(argv("sev", spec(hashed_modes=("sev-snp",))))


def test_sev_without_firmware_is_refused() -> None:
    assert "-bios" not in argv("tcg", spec(firmware=None))
    with pytest.raises(HostError, match="needs firmware"):
        argv("sev", spec(firmware=None))


def test_the_root_is_shared_read_only_whatever_its_name_is() -> None:
    [shared] = values(argv("tcg", rootfs=Path("/srv/a,readonly=off")), "-fsdev")
    assert shared.startswith("local,id=rootfs,path=/srv/a,,readonly=off,security_model=none")
    assert ",readonly=on," in shared


def test_a_disk_is_attached_read_only_and_bounces() -> None:
    made = argv("sev-snp", spec(disk=Path("/w,1.img")))
    assert "if=none,id=disk,format=raw,readonly=on,file=/w,,1.img" in values(made, "-drive")
    [disk] = [device for device in values(made, "-device") if "virtio-blk" in device]
    assert disk == "virtio-blk-pci,drive=disk,disable-legacy=on,iommu_platform=on"
    assert not [device for device in values(argv("tcg"), "-device") if "blk" in device]


def test_hvc0_is_there_when_it_is_the_only_console() -> None:
    assert not any("virtconsole" in each for each in argv("tcg"))
    both = spec(cmdline="console=hvc0 console=ttyS0")
    assert not any("virtconsole" in each for each in argv("tcg", both))
    only = spec(cmdline="quiet console=hvc0")
    assert "virtconsole,bus=ports.0,chardev=console" in argv("tcg", only)


def test_arguments_of_a_test_come_last() -> None:
    assert argv("tcg", extra_args=["-device", "x"])[-2:] == ["-device", "x"]


@pytest.mark.parametrize(
    ("text", "mib"),
    [("512M", 512), ("512", 512), ("1G", 1024), ("512 MiB", 512), ("2gib", 2048), (" 600mb ", 600)],
)
def test_memory_is_read_in_the_ways_people_write_it(text: str, mib: int) -> None:
    assert parse_memory("--memory", text, least_mib=256) == mib


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "not a size"),
        ("much", "not a size"),
        ("-512M", "not a size"),
        ("0x200", "not a size"),
        ("1.5G", "not a size"),
        ("512K", "not a size"),
        ("\u0665\u0661\u0662M", "not a size"),
        ("9" * 5000, "not a size"),
        ("0", "needs 256 MiB"),
        ("255M", "needs 256 MiB"),
        ("1048577M", "more than 1 TiB"),
    ],
)
def test_impossible_memory_is_refused(text: str, cause: str) -> None:
    with pytest.raises(RecipeError, match=f"^--guest-memory: .*{cause}") as caught:
        parse_memory("--guest-memory", text, least_mib=256)
    assert "--guest-memory " in caught.value.hint
