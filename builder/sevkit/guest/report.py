# SPDX-License-Identifier: Apache-2.0
"""The agent's report in words.

What a guest says of itself is data from outside: it may be missing, of another type, or made to
look like something else on a terminal, and none of that gets through. Never fails.
"""

from collections.abc import Sequence

from sevkit.canonical import Json
from sevkit.guest.conversation import Report
from sevkit.printable import printable

_VIRTIO_NAMES = {
    1: "net",
    2: "block",
    3: "console",
    4: "rng",
    5: "balloon",
    8: "scsi",
    9: "9p",
    19: "vsock",
    26: "fs",
}
"""Virtio 1.2, section 5."""
_NOT_OFFERED = " (WITHOUT ACCESS_PLATFORM)"
_NO_DRIVER = " (no driver)"
_TEXT_LIMIT = 160


def report_lines(report: Report, *, seconds_to_report: float | None = None) -> list[str]:
    """The report in some lines, each ``name  value``."""
    rows = [
        ("kernel", _text(report.get("kernel"))),
        ("boot", _boot(report, seconds_to_report)),
        ("encryption", _encryption(report.get("sev"))),
        ("bounce buffers", _bounce_buffers(report.get("swiotlb"))),
        ("virtio", _virtio(report.get("virtio"))),
        ("memory", _memory(report.get("memory"), report.get("agent_rss_kib"))),
        ("root", _text(report.get("root_fstype"))),
    ]
    if report.get("debug") is True:
        rows.append(("image", "DEBUG: not for production"))
    return [f"{name:15} {value}" for name, value in rows]


def _text(value: Json) -> str:
    if not isinstance(value, str):
        return "unknown"
    shown = printable(value)
    return shown if len(shown) <= _TEXT_LIMIT else shown[: _TEXT_LIMIT - 1] + "…"


def _number(value: Json) -> int | None:
    """A count within reason; a guest may send any integer."""
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _boot(report: Report, seconds: float | None) -> str:
    parts = [] if seconds is None else [f"{seconds:.2f} s from QEMU's start to the report"]
    uptime = _number(report.get("uptime_ms"))
    if uptime is not None:
        parts.append(
            f"{uptime / 1000:.2f} s of them in the kernel and the agent"
            if parts
            else f"{uptime / 1000:.2f} s in the kernel and the agent"
        )
    return ", ".join(parts) or "unknown"


def _encryption(sev: Json) -> str:
    if not isinstance(sev, dict):
        return "unknown"
    active = sev.get("active")
    if isinstance(active, str):
        return f"{_text(active)} is active"
    return "none: this host can read the guest's memory"


def _bounce_buffers(swiotlb: Json) -> str:
    if not isinstance(swiotlb, dict):
        return "none, or the kernel does not tell (debugfs)"
    slots, high, size = (
        _number(swiotlb.get(key)) for key in ("total_slots", "hiwater_slots", "slot_bytes")
    )
    if slots is None or size is None:
        return "unknown"
    used = "" if high is None else f", at most {_mib(high * size)} used"
    return f"{_mib(slots * size)}{used}"


def _virtio(devices: Json) -> str:
    if not isinstance(devices, Sequence) or isinstance(devices, str):
        return "unknown"
    shown = []
    for device in devices[:16]:
        if not isinstance(device, dict):
            return "unknown"
        number = _number(device.get("id"))
        kind = _VIRTIO_NAMES.get(number, f"id {number}") if number is not None else "unknown"
        offers = device.get("access_platform")
        remark = "" if offers is True else _NO_DRIVER if offers is None else _NOT_OFFERED
        shown.append(kind + remark)
    more = len(devices) - len(shown)
    return ", ".join(shown + ([f"and {more} more"] if more else [])) or "no device"


def _memory(memory: Json, agent: Json) -> str:
    if not isinstance(memory, dict):
        return "unknown"
    used, total, resident = (
        _number(value) for value in (memory.get("used_kib"), memory.get("total_kib"), agent)
    )
    if used is None or total is None:
        return "unknown"
    of_agent = "" if resident is None else f", {_mib(resident * 1024)} of it the agent"
    return f"{_mib(used * 1024)} used of {_mib(total * 1024)}{of_agent}"


def _mib(size: int) -> str:
    return f"{size / 1048576:.1f} MiB"
