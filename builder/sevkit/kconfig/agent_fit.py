# SPDX-License-Identifier: Apache-2.0
"""Whether a kernel has what an agent needs: file systems that it mounts, devices, sockets.

A need is a word that a recipe says (``agent.needs``); its row here names the kernel symbols behind
it, each of which must be built in, as nothing can load a module before the agent runs. An agent
that is known by its bytes is held to a list of its own when the recipe says none. Never guesses
what an unknown program mounts.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from sevkit.errors import RecipeError

NEEDS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        # File systems, as mount(8) spells them (fs/*/Kconfig, mm, kernel/cgroup).
        "proc": ("PROC_FS",),
        "sysfs": ("SYSFS",),
        "devtmpfs": ("DEVTMPFS",),
        "devpts": ("UNIX98_PTYS",),
        "tmpfs": ("SHMEM", "TMPFS"),
        "cgroup2": ("CGROUPS",),
        "debugfs": ("DEBUG_FS",),
        "securityfs": ("SECURITYFS",),
        "configfs": ("CONFIGFS_FS",),
        "overlay": ("OVERLAY_FS",),
        "9p": ("9P_FS", "NET_9P_VIRTIO"),
        "virtiofs": ("VIRTIO_FS",),
        "fuse": ("FUSE_FS",),
        "erofs": ("EROFS_FS",),
        "squashfs": ("SQUASHFS",),
        "ext4": ("EXT4_FS",),
        "xfs": ("XFS_FS",),
        # Block devices.
        "loop": ("BLK_DEV_LOOP",),
        "dm-verity": ("BLK_DEV_DM", "DM_VERITY"),
        "dm-crypt": ("BLK_DEV_DM", "DM_CRYPT"),
        "virtio-blk": ("VIRTIO_BLK",),
        "virtio-scsi": ("SCSI_VIRTIO",),
        # Ways to the host.
        "vsock": ("VSOCKETS", "VIRTIO_VSOCKETS"),
        "virtio-console": ("VIRTIO_CONSOLE",),
        "virtio-net": ("VIRTIO_NET",),
        "tun": ("TUN",),
        # What confines containers.
        "namespaces": ("NAMESPACES", "UTS_NS", "IPC_NS", "PID_NS", "NET_NS"),
        "user-namespaces": ("USER_NS",),
        "memory-cgroup": ("MEMCG",),
        "pids-cgroup": ("CGROUP_PIDS",),
        "cpu-cgroup": ("CGROUP_SCHED", "CFS_BANDWIDTH"),
        "device-cgroup": ("CGROUP_BPF",),
        "seccomp": ("SECCOMP_FILTER",),
        # Attestation: /sys/kernel/config/tsm and /dev/sev-guest.
        "tsm-report": ("TSM_REPORTS",),
        "sev-guest": ("SEV_GUEST",),
    }
)
"""Need → the symbols without which it is not there."""

_SET = re.compile(r"^CONFIG_(\w+)=(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class KnownAgent:
    """A program known by texts that are all in it, and what it needs to be PID 1."""

    name: str
    marks: tuple[bytes, ...]
    needs: tuple[str, ...]


KNOWN: Sequence[KnownAgent] = (
    # src/agent/src/main.rs and mount.rs (INIT_ROOTFS_MOUNTS) of kata-containers: as init it mounts
    # these and panics without; it then listens on AF_VSOCK, port 1024. Containers are given
    # namespaces, memory and pids controllers by rustjail.
    KnownAgent(
        "kata-agent",
        (b"kata-agent", b"/run/kata-containers"),
        (
            *("proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "cgroup2", "vsock"),
            *("namespaces", "memory-cgroup", "pids-cgroup"),
        ),
    ),
)


def known_agent(program: bytes) -> KnownAgent | None:
    """The agent that `program` is, if its bytes tell."""
    return next((one for one in KNOWN if all(mark in program for mark in one.marks)), None)


@dataclass(frozen=True)
class Unmet:
    """A need, the symbol behind it, and the symbol's value: ``m``, or ``n`` when it is not set."""

    need: str
    symbol: str
    found: str


def unmet(needs: Sequence[str], config: str) -> list[Unmet]:
    """What of `needs` is not in the kernel with the .config `config`, in their order."""
    values = dict(_SET.findall(config))
    return [
        Unmet(need, symbol, values.get(symbol, "n"))
        for need in needs
        for symbol in NEEDS[need]
        if values.get(symbol) != "y"
    ]


def check_fit(stated: Sequence[str], program: bytes, config: str) -> None:
    """Raise `RecipeError` when the kernel lacks what the agent needs.

    `stated` is the recipe's ``agent.needs``; when it is empty a known agent's own list counts.
    """
    known = known_agent(program)
    needs = stated or (known.needs if known else ())
    lost = unmet(needs, config)
    if not lost:
        return
    name = f"the agent ({known.name})" if known else "the agent"
    why = [
        f"{one.need}: CONFIG_{one.symbol} is {'a module' if one.found == 'm' else 'not set'}"
        for one in lost
    ]
    if not stated and known:
        why.append(f"the recipe has no agent.needs, so these are what every {known.name} needs")
    raise _misfit(name, lost, why)


def check_early(stated: Sequence[str], forbidden: Mapping[str, str]) -> None:
    """Raise `RecipeError` when the recipe's fragments rule out what its agent needs.

    `forbidden` is symbol → the fragment and line that has the last word on it, and says no.
    """
    lost = [
        Unmet(need, symbol, "n") for need in stated for symbol in NEEDS[need] if symbol in forbidden
    ]
    if lost:
        why = [f"{one.need}: {forbidden[one.symbol]} forbids CONFIG_{one.symbol}" for one in lost]
        raise _misfit("the agent", lost, why)


def _misfit(agent: str, lost: Sequence[Unmet], why: Sequence[str]) -> RecipeError:
    return RecipeError(
        f"{agent} and the kernel do not fit: no {', no '.join(_once(one.need for one in lost))}",
        why="\n".join(why),
        hint="add to a fragment of kernel.configs: "
        + ", ".join(_once(f"CONFIG_{one.symbol}=y" for one in lost))
        + f" (`sevkit kconfig why {lost[0].symbol}` tells what it takes), or mend agent.needs",
    )


def _once(words: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(words))
