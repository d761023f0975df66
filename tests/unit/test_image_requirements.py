# SPDX-License-Identifier: Apache-2.0
"""What a guest asks of its host."""

from dataclasses import replace
from typing import Any

import pytest
from image_samples import CONFIG, bzimage

from sevkit.errors import BuildError
from sevkit.firmware.ovmf import Mode
from sevkit.image.requirements import (
    BOOT_DEVICES,
    DEVICE_NEEDS,
    MIB,
    VERSIONS,
    Contents,
    Swiotlb,
    bounce_bytes,
    default_mib,
    is_older,
    kernel_init_bytes,
    kernel_problems,
    launch_problems,
    minimum_mib,
)

SMALL = Contents(kernel=25 * MIB, archive=3 * MIB, unpacked=8 * MIB)
SHARE = Swiotlb(None)


@pytest.mark.parametrize(
    ("mode", "new", "old"),
    [
        ("sev", "4.15.0", "4.14.200"),
        ("sev-es", "5.11", "5.10.99"),
        ("sev-snp", "6.1.192", "5.18.1"),
    ],
)
def test_a_kernel_older_than_a_mode_is_told(mode: Mode, new: str, old: str) -> None:
    assert kernel_problems(mode, new, CONFIG) == []
    [problem] = kernel_problems(mode, old, CONFIG)
    assert problem == f"the kernel is {old}, and {mode} guests need {VERSIONS[mode].guest_kernel}"


def test_versions_are_compared_by_number() -> None:
    assert [is_older(one, "9.1") for one in ("9.0.2", "", "new", "8.10", "9")] == [True] * 5
    assert [is_older(one, "9.1") for one in ("9.1", "9.1.0", "9.10", "10.0.8+ds")] == [False] * 4
    assert kernel_problems("sev", "4.9.1", CONFIG)
    assert not kernel_problems("sev", "10.0", CONFIG)
    with pytest.raises(BuildError, match="no version of a kernel"):
        kernel_problems("sev", "new", CONFIG)


def test_a_kernel_without_memory_encryption_is_told() -> None:
    config = CONFIG.replace("CONFIG_AMD_MEM_ENCRYPT=y", "# CONFIG_AMD_MEM_ENCRYPT is not set")
    assert kernel_problems("sev", "6.12.1", config) == [
        "the kernel was built without CONFIG_AMD_MEM_ENCRYPT"
    ]
    assert kernel_problems("sev", "6.12.1", CONFIG) == []


@pytest.mark.parametrize(
    ("memory", "expected"),
    [(128, 64), (1066, 64), (1067, 128), (2048, 128), (16384, 1024), (32768, 1024)],
)
def test_bounce_buffers_take_a_share_of_memory_within_limits(memory: int, expected: int) -> None:
    assert SHARE.mib(memory) == expected


def test_the_bound_on_bounce_buffers_has_no_steps() -> None:
    for memory in range(128, 40000):
        assert SHARE.mib(memory) <= SHARE.most_mib(memory)
        assert 0 <= SHARE.most_mib(memory + 1) - SHARE.most_mib(memory) <= 1


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("console=ttyS0", None),
        ("swiotlb=force", None),
        ("swiotlb=65536", 128 * MIB),
        ("quiet swiotlb=65536,force panic=-1", 128 * MIB),
        ("swiotlb=0x10000,4,force", 128 * MIB),
        ("swiotlb=1", 128 * 2048),
        ("noswiotlb=65536", None),
        ("swiotlb=0,force", None),
        ("swiotlb=32768,force", None),
        ("swiotlb=0200000", 128 * MIB),
        ("swiotlb=089", None),
        ("swiotlb=1024 swiotlb=65536", 128 * MIB),
        ("swiotlb=65537", 256 * MIB),
        ("swiotlb=1048064", 2048 * MIB),
        ("swiotlb=0X10000", 128 * MIB),
        ("swiotlb=-1", None),
        ('"swiotlb=65536"', 128 * MIB),
        ('swiotlb="65536,force"', 128 * MIB),
        ("swiotlb=65536 -- swiotlb=131072", 128 * MIB),
        ("-- swiotlb=131072", None),
        ('a="b swiotlb=131072"', None),
    ],
)
def test_the_command_line_fixes_bounce_buffers(cmdline: str, expected: int | None) -> None:
    assert Swiotlb.of_cmdline(cmdline).fixed_bytes == expected


def test_fixed_bounce_buffers_do_not_grow_with_memory() -> None:
    fixed = Swiotlb.of_cmdline("swiotlb=65536")
    assert fixed.mib(256) == fixed.mib(65536) == 128
    assert minimum_mib(SMALL, fixed) == minimum_mib(SMALL, SHARE) + 64


def test_the_minimum_holds_all_that_it_must_and_no_step_less_would() -> None:
    def is_enough(memory: int) -> bool:
        return memory - SHARE.most_mib(memory) - -(-memory // 64) >= 25 + 3 + 16 + 64 + 16

    least = minimum_mib(SMALL, SHARE)
    assert is_enough(least)
    assert not is_enough(least - 32)
    assert least % 32 == 0


def test_absurd_bounce_buffers_take_no_time_to_add_up() -> None:
    absurd = Swiotlb.of_cmdline(f"swiotlb={10**1900}")
    assert minimum_mib(SMALL, absurd) > 10**1890


def test_the_minimum_is_what_trying_every_step_finds() -> None:
    for size in range(0, 3000 * MIB, 111 * MIB):
        held = replace(SMALL, unpacked=size)
        needed = 25 + 3 + 2 * size // MIB + 64 + 16
        tried = next(
            memory
            for memory in range(128, 1 << 20, 32)
            if memory - SHARE.most_mib(memory) - -(-memory // 64) >= needed
        )
        assert minimum_mib(held, SHARE) == tried
        for memory in range(tried, 2 * tried, 32):
            assert memory - SHARE.mib(memory) - -(-memory // 64) >= needed


def test_the_minimum_never_falls_when_something_grows() -> None:
    for name in ("kernel", "archive", "unpacked"):
        last = 0
        for size in range(0, 4096 * MIB, 37 * MIB):
            found = minimum_mib(replace(SMALL, **{name: size}), SHARE)
            assert found >= last
            last = found
        assert last > minimum_mib(SMALL, SHARE)


def test_the_default_leaves_room_for_a_workload() -> None:
    assert default_mib(192) == 512
    assert default_mib(288) == 640
    assert all(default_mib(least) >= least + 256 for least in range(128, 5000, 32))


def test_what_a_kernel_needs_to_unpack_is_in_its_header() -> None:
    assert kernel_init_bytes(bzimage(init_size=123456)) == 123456


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF" + bytes(4096), bzimage()[:0x263], bzimage(protocol=0x209)]
)
def test_what_is_no_bzimage_is_refused(data: bytes) -> None:
    kernel_init_bytes(bzimage())
    with pytest.raises(BuildError, match="vmlinuz"):
        kernel_init_bytes(data)


def problems(**changes: Any) -> list[str]:
    """Of a launch that is fine but for the changes."""
    facts = {"memory_mib": 512, "vcpus": 1, "devices": BOOT_DEVICES, "held_bytes": 28 << 20}
    facts |= changes
    swiotlb = facts.pop("swiotlb", SHARE)
    return launch_problems(minimum_mib(SMALL, swiotlb), swiotlb, **facts)


def test_a_launch_that_fits_has_no_problem() -> None:
    assert problems() == []
    assert problems(vcpus=16, devices={**BOOT_DEVICES, "disk": 2, "share": 1, "vsock": 1}) == []


def test_an_initramfs_that_does_not_unpack_is_found_at_the_very_minimum() -> None:
    least = minimum_mib(SMALL, SHARE)
    assert problems(memory_mib=least) == []
    [problem] = problems(memory_mib=least - 1)
    assert f"from {least} MiB on" in problem


@pytest.mark.parametrize("slots", [2048 * 512, 2047 * 512, 1025 * 512])
def test_bounce_buffers_larger_than_low_memory_are_found(slots: int) -> None:
    large = Swiotlb.of_cmdline(f"swiotlb={slots}")
    assert large.mib(8192) == 2048
    assert problems(swiotlb=large, memory_mib=2815) == []
    for memory in (2816, 3072, 6144):
        [problem] = problems(swiotlb=large, memory_mib=memory)
        assert "2048 MiB of memory below 4 GiB" in problem


def test_kernel_and_initramfs_must_lie_in_low_memory_beside_bounce_buffers() -> None:
    large = Swiotlb.of_cmdline(f"swiotlb={1024 * 512}")
    low = {"swiotlb": large, "memory_mib": 3072}
    assert problems(**low, held_bytes=(1024 - 80) << 20) == []
    [problem] = problems(**low, held_bytes=((1024 - 80) << 20) + 1)
    assert "kernel, initramfs and firmware take 1025" in problem


@pytest.mark.parametrize("device", sorted(DEVICE_NEEDS))
def test_every_kind_of_device_takes_bounce_buffers_until_they_are_too_few(device: str) -> None:
    some = Swiotlb.of_cmdline("swiotlb=1024")
    counts = [count for count in range(1100) if problems(swiotlb=some, devices={device: count})]
    assert counts
    assert counts == list(range(counts[0], 1100))
    assert counts[0] > 0
    assert (
        bounce_bytes({device: counts[0]}, 1) > 2 << 20 >= bounce_bytes({device: counts[0] - 1}, 1)
    )


def test_more_vcpus_need_more_bounce_buffers_for_their_queues() -> None:
    disk = {**BOOT_DEVICES, "disk": 1}
    assert problems(devices=disk, vcpus=32) == []
    [problem] = problems(devices=disk, vcpus=64)
    assert "1 disk with 64 vCPUs" in problem
