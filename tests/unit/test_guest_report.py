# SPDX-License-Identifier: Apache-2.0
"""A report in words: the right ones for a true report, harmless ones for anything else."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevkit.guest.report import report_lines

REPORT: dict[str, Any] = {
    "kernel": "6.12.117-sevkit",
    "uptime_ms": 812,
    "sev": {"cpu": [], "kernel": None, "active": None},
    "swiotlb": {
        "total_slots": 32768,
        "used_slots": 320,
        "hiwater_slots": 512,
        "slot_bytes": 2048,
    },
    "virtio": [
        {"device": "virtio0", "id": 3, "access_platform": True},
        {"device": "virtio1", "id": 2, "access_platform": False},
        {"device": "virtio2", "id": 99, "access_platform": None},
    ],
    "memory": {"total_kib": 433288, "available_kib": 410512, "used_kib": 14336},
    "root_fstype": "rootfs",
    "pid": 1,
    "agent_rss_kib": 1536,
    "debug": False,
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def line(report: dict[str, Any], name: str) -> str:
    [found] = [each for each in report_lines(report) if each.startswith(name)]
    return found.removeprefix(name).strip()


def test_a_report_is_told_in_a_few_lines() -> None:
    assert report_lines(REPORT, seconds_to_report=2.345) == [
        "kernel          6.12.117-sevkit",
        "boot            2.35 s from QEMU's start to the report, "
        "0.81 s of them in the kernel and the agent",
        "encryption      none: this host can read the guest's memory",
        "bounce buffers  64.0 MiB, at most 1.0 MiB used",
        "virtio          console, block (WITHOUT ACCESS_PLATFORM), id 99 (no driver)",
        "memory          14.0 MiB used of 423.1 MiB, 1.5 MiB of it the agent",
        "root            rootfs",
    ]


def test_an_encrypted_guest_and_a_debug_image_are_told_from_the_others() -> None:
    report = {**REPORT, "sev": {"active": "sev-snp"}, "debug": True}
    assert line(report, "encryption") == "sev-snp is active"
    assert "DEBUG" in line(report, "image")


def test_what_a_guest_says_can_not_move_the_cursor() -> None:
    report = {**REPORT, "kernel": "6.12\x1b[2J\r\n\u202e\ud800"}
    assert line(report, "kernel") == "6.12\\x1b[2J\\r\\n\\u202e\\ud800"


def test_what_a_guest_says_can_not_fill_the_screen() -> None:
    device = {"device": "virtio0", "id": 7, "access_platform": True}
    report = {**REPORT, "kernel": "6" * 60000, "virtio": [device] * 2000}
    assert len(line(report, "kernel")) == 160
    assert line(report, "virtio").endswith("and 1984 more")


@pytest.mark.parametrize("name", sorted(REPORT))
@settings(max_examples=25)
@given(value=json_values)
def test_no_report_breaks_the_telling(name: str, value: Any) -> None:
    lines = report_lines({**REPORT, name: value}, seconds_to_report=1)
    assert 7 <= len(lines) <= 8
    assert all(each.isprintable() and len(each) < 1200 for each in lines)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(sorted(REPORT)), json_values))
def test_a_report_with_anything_missing_is_told(report: dict[str, Any]) -> None:
    assert 7 <= len(report_lines(report)) <= 8
