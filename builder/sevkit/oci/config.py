# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime configuration of a container in the guest: what it may see, do and use.

One function from an image's configuration and the user's wishes to `config.json`, the same whether
it is sent to the agent or put into a measured workload image. Pure: reads and writes no file.

Forms: OCI image specification 1.1, config.md; OCI runtime specification 1.0.2, config.md and
config-linux.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sevkit.canonical import Json
from sevkit.errors import RecipeError
from sevkit.oci.seccomp import profile

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PIDS_LIMIT = 2048
CPU_PERIOD_US = 100_000
ROOT = "rootfs"
"""`root.path`, which docs/agent-protocol.md asks for."""

CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
    "CAP_SYSLOG",
)
"""Of docker's default set all but MKNOD, NET_RAW and AUDIT_WRITE; and SYSLOG: the guest's kernel
log is the container's own evidence of encryption and bouncing, and the seccomp profile lets it be
read and nothing else."""

_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel",
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_NAMESPACES = ("pid", "mount", "uts", "ipc", "network", "cgroup")


@dataclass(frozen=True)
class Overrides:
    """What the user says about a container. None and empty: as the image says.

    Memory in bytes; `cpus` in CPUs (1.5); `pids` 0 is no limit.
    """

    argv: Sequence[str] = ()
    """Takes the place of Cmd; Entrypoint stays in front, as docker has it."""
    env: Sequence[str] = ()
    """NAME=value, after those of the image and in their place."""
    cwd: str | None = None
    user: str | None = None
    """``uid``, ``uid:gid``, or names that the image's passwd and group know."""
    tty: bool = False
    memory_bytes: int | None = None
    pids: int = PIDS_LIMIT
    cpus: float | None = None
    hostname: str = "sevkit"


@dataclass(frozen=True)
class Accounts:
    """The text of /etc/passwd and /etc/group in the image: passwd(5), group(5)."""

    passwd: str = ""
    group: str = ""


def runtime_config(
    image_config: Mapping[str, Json],
    overrides: Overrides = Overrides(),
    accounts: Accounts = Accounts(),
) -> dict[str, Json]:
    """The runtime configuration of a container of an image.

    `image_config` is an image's configuration as OCI and docker write it; empty for a bare folder.
    Raises `RecipeError` when there is nothing to run, or for a user that the image does not know.
    """
    wanted = _object(image_config, "config")
    argv = [*_strings(wanted, "Entrypoint"), *(overrides.argv or _strings(wanted, "Cmd"))]
    if not argv:
        raise RecipeError(
            "the image names no command, and none was given", hint="sevkit run IMAGE ROOTFS -- sh"
        )
    user, home = _user(overrides.user or _string(wanted, "User"), accounts)
    defaults = [f"PATH={SEARCH_PATH}", f"HOME={home}", *(["TERM=xterm"] * overrides.tty)]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": overrides.tty,
            "user": user,
            "args": argv,
            "env": _merged([*defaults, *_strings(wanted, "Env"), *overrides.env]),
            "cwd": overrides.cwd or _string(wanted, "WorkingDir") or "/",
            "capabilities": {
                name: list(CAPABILITIES) for name in ("bounding", "effective", "permitted")
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1048576}],
            "noNewPrivileges": True,
        },
        "root": {"path": ROOT, "readonly": False},
        "hostname": overrides.hostname,
        "mounts": _mounts(),
        "linux": {
            "namespaces": [{"type": name} for name in _NAMESPACES],
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                **_limits(overrides),
            },
            "seccomp": profile(),
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
        },
    }


def _limits(overrides: Overrides) -> dict[str, Json]:
    limits: dict[str, Json] = {}
    if overrides.memory_bytes is not None:
        limits["memory"] = {"limit": overrides.memory_bytes}
    if overrides.pids:
        limits["pids"] = {"limit": overrides.pids}
    if overrides.cpus is not None:
        quota = max(1000, round(overrides.cpus * CPU_PERIOD_US))
        limits["cpu"] = {"quota": quota, "period": CPU_PERIOD_US}
    return limits


def _mounts() -> list[Json]:
    shut = ["nosuid", "noexec", "nodev"]
    rows = [
        ("/proc", "proc", "proc", shut),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        ("/dev/shm", "tmpfs", "shm", [*shut, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", shut),
        ("/sys", "sysfs", "sysfs", [*shut, "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", [*shut, "relatime", "ro"]),
    ]
    return [
        {"destination": place, "type": kind, "source": source, "options": options}
        for place, kind, source, options in rows
    ]


def _merged(env: Sequence[str]) -> list[Json]:
    """The last value of each name, in the order in which names first appear."""
    return list({each.partition("=")[0]: each for each in env}.values())


def _user(text: str, accounts: Accounts) -> tuple[dict[str, Json], str]:
    """The `user` object and the home folder: the rules of config.md, `User`."""
    name, _, group = text.partition(":")
    known = (
        [row for row in _rows(accounts.passwd, 7) if name in (row[0], row[2])]
        if name
        else [row for row in _rows(accounts.passwd, 7) if row[2] == "0"]
    )
    if name and not known and not _is_id(name):
        raise RecipeError(
            f"the image's /etc/passwd has no user '{name}'", hint="give numbers: --user 1000:1000"
        )
    uid = int(known[0][2]) if known else int(name or 0)
    gid = int(known[0][3]) if known else 0
    extra: list[int] = []
    if group:
        gid = _group(group, accounts)
    elif known:
        rows = _rows(accounts.group, 4)
        extra = sorted({int(row[2]) for row in rows if known[0][0] in row[3].split(",")} - {gid})
    user: dict[str, Json] = {"uid": uid, "gid": gid}
    if extra:
        user["additionalGids"] = list(extra)
    return user, (known[0][5] if known else "") or "/"


def _group(text: str, accounts: Accounts) -> int:
    for row in _rows(accounts.group, 4):
        if row[0] == text:
            return int(row[2])
    if _is_id(text):
        return int(text)
    raise RecipeError(
        f"the image's /etc/group has no group '{text}'", hint="give numbers: --user 1000:1000"
    )


def _rows(text: str, fields: int) -> list[list[str]]:
    """The lines whose numbers are numbers, cut into their fields."""
    rows = [line.split(":") for line in text.splitlines()]
    numbers = slice(2, 4) if fields == 7 else slice(2, 3)
    return [
        row for row in rows if len(row) == fields and all(_is_id(number) for number in row[numbers])
    ]


def _is_id(text: str) -> bool:
    """Whether a user or group can have this number; -1, as 32 bits, means none (setresuid(2))."""
    return text.isascii() and text.isdecimal() and int(text) < (1 << 32) - 1


def _object(value: Mapping[str, Json], key: str) -> Mapping[str, Json]:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _strings(value: Mapping[str, Json], key: str) -> list[str]:
    found = value.get(key)
    if found is None:
        return []
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise RecipeError(f"the image's configuration has a '{key}' that is no list")
    if not all(isinstance(each, str) for each in found):
        raise RecipeError(f"the image's configuration has a '{key}' that is no list of strings")
    return [each for each in found if isinstance(each, str)]


def _string(value: Mapping[str, Json], key: str) -> str:
    found = value.get(key)
    return found if isinstance(found, str) else ""
