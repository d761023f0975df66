# SPDX-License-Identifier: Apache-2.0
"""Containers in a guest that runs: many of them, how they end, their limits, what they may not do.

One guest of the default image serves nearly all of these tests.
"""

import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sevkit.guest.conversation import Ending, Process, RefusedError
from sevkit.guest.plaintext import page_of, search
from sevkit.guest.qemu import ROOTFS_TAG
from sevkit.guest.running import Guest, Streams
from sevkit.guest.session import Asked, Session
from sevkit.oci.config import Overrides, runtime_config

pytestmark = [pytest.mark.boots, pytest.mark.network]

MIB = 1 << 20
PATH = ["PATH=/bin"]
SECONDS = 120
TRIES = r"""
// SPDX-License-Identifier: Apache-2.0
// Tries what a container must not do, and prints the errno of each; harmless where it succeeds.
#include <errno.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static void told(const char *what, long result)
{
	printf("%s %d\n", what, result < 0 ? errno : 0);
}

int main(void)
{
	told("mount", mount("none", "/tmp", "tmpfs", 0, NULL));
	told("mknod", mknod("/null", S_IFCHR | 0666, makedev(1, 3)));
	told("reboot", reboot(RB_DISABLE_CAD));
	told("ptrace", ptrace(PTRACE_SEIZE, 1, 0, 0));
	told("vsock", socket(AF_VSOCK, SOCK_STREAM, 0));
	told("inet", socket(AF_INET, SOCK_STREAM, 0));
	return 0;
}
"""


@dataclass
class Container:
    """A container, and what it wrote."""

    guest: Guest
    name: str
    process: Process
    out: bytearray
    err: bytearray = field(default_factory=bytearray)

    def wait(self, seconds: float = SECONDS) -> Ending:
        return self.guest.wait(self.process, seconds)

    def finish(self) -> tuple[Ending, str, str]:
        """Start it, wait for its end, remove it."""
        self.guest.start(self.name)
        ending = self.wait()
        self.guest.delete(self.name)
        return ending, self.out.decode(), self.err.decode()


@pytest.fixture(scope="module")
def root(busybox_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of all containers here: busybox, and a program that tries things."""
    source = tmp_path_factory.mktemp("tries") / "tries.c"
    source.write_text(TRIES)
    program = busybox_root / "bin" / "tries"
    subprocess.run(["gcc", "-static", "-Wall", "-Werror", "-o", program, source], check=True)
    return busybox_root


@pytest.fixture(scope="module")
def guest(sev_guest: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest that serves, and that powers off well after all that was asked of it."""
    cache = tmp_path_factory.mktemp("cache")
    session = Session.of_image(
        sev_guest, Asked(rootfs=root), cache=cache, log=cache / "console.log"
    )
    with session.guest() as guest:
        yield guest
        guest.shut_down()


def create(
    guest: Guest,
    name: str,
    argv: Sequence[str],
    *,
    stdin: int | None = None,
    config: Any = None,
    **wishes: Any,
) -> Container:
    out, err = bytearray(), bytearray()
    wanted = config or runtime_config({}, Overrides(argv=argv, **wishes))
    size = (24, 80) if wishes.get("tty") else None
    streams = Streams(out.extend, err.extend, stdin=stdin, tty=size)
    process = guest.create(name, streams, config=wanted, share=ROOTFS_TAG)
    return Container(guest, name, process, out, err)


def in_container(guest: Guest, script: str, **wishes: Any) -> tuple[Ending, str, str]:
    return create(guest, "one", ["sh", "-c", script], **wishes).finish()


def outside(guest: Guest, *argv: str, tty: bool = False) -> tuple[Ending, str]:
    """Run a command of the guest as its root, outside any container."""
    out = bytearray()
    size = (24, 80) if tty else None
    streams = Streams(out.extend, out.extend, tty=size)
    process = guest.run(argv, streams, env=PATH, share=ROOTFS_TAG)
    return guest.wait(process, SECONDS), out.decode()


def test_a_container_is_alone_with_its_own_names(guest: Guest) -> None:
    script = (
        "echo $$; hostname; set -- /proc/[0-9]*; echo $#; ls /sys/class/net; cat /proc/1/cgroup"
    )
    ending, out, err = in_container(guest, script, hostname="alone")
    assert (ending, err) == (Ending(0, None), "")
    assert out.split() == ["1", "alone", "1", "lo", "0::/"]


def test_streams_stay_apart_and_the_status_comes_back(guest: Guest) -> None:
    found = in_container(guest, "echo out; echo err >&2; exit 7")
    assert found == (Ending(7, None), "out\n", "err\n")


def test_twenty_containers_run_one_after_the_other(guest: Guest) -> None:
    for number in range(20):
        name = f"n{number}"
        container = create(
            guest,
            name,
            ["sh", "-c", f"echo {number}; test -e /seen && exit 99; echo > /seen; exit {number}"],
        )
        assert container.finish() == (Ending(number, None), f"{number}\n", "")


def test_eight_containers_run_at_once_each_with_its_own_streams(guest: Guest) -> None:
    script = "read line; echo got $line; read line; exit $line"
    pipes = [os.pipe() for _ in range(8)]
    containers = [
        create(guest, f"m{number}", ["sh", "-c", script], stdin=ours)
        for number, (ours, _) in enumerate(pipes)
    ]
    for container in containers:
        guest.start(container.name)
    assert outside(guest, "sh", "-c", "ls -d /sys/fs/cgroup/sevkit/m[0-9]")[1].count("\n") == 8
    for number, (_, theirs) in enumerate(pipes):
        os.write(theirs, f"line-{number}\n{number + 40}\n".encode())
    for number in reversed(range(8)):
        assert containers[number].wait() == Ending(number + 40, None)
        assert containers[number].out == f"got line-{number}\n".encode()
        guest.delete(containers[number].name)
    for pair in pipes:
        for descriptor in pair:
            os.close(descriptor)


def test_every_exit_status_comes_back(guest: Guest) -> None:
    for status in range(256):
        ending, _ = outside(guest, "sh", "-c", f"exit {status}")
        assert ending == Ending(status, None)


def test_a_signal_ends_a_container_and_is_told(guest: Guest) -> None:
    container = create(guest, "killed", ["sleep", "1000"])
    guest.start("killed")
    guest.signal(container.process, 9)
    assert container.wait() == Ending(None, 9)
    with pytest.raises(RefusedError):
        guest.signal(container.process, 9)
    guest.delete("killed")


def test_other_commands_run_in_a_running_container(guest: Guest) -> None:
    container = create(guest, "home", ["sleep", "1000"], env=["WHO=home"])
    guest.start("home")
    out = bytearray()
    argv = ["sh", "-c", "echo $WHO; id -u; tr '\\0' ' ' < /proc/1/cmdline; exit 3"]
    streams = Streams(out.extend, out.extend)
    process = guest.exec("home", argv, streams, env=[*PATH, "WHO=guest"], user=(7, 7))
    assert guest.wait(process, SECONDS) == Ending(3, None)
    assert out.decode().split() == ["guest", "7", "sleep", "1000"]
    guest.delete("home")
    assert container.wait() == Ending(None, 9)


def test_64_mib_pass_through_a_container_unharmed_both_ways(guest: Guest, tmp_path: Path) -> None:
    given = hashlib.sha256()
    with (tmp_path / "data").open("wb") as file:
        for number in range(64):
            block = hashlib.shake_128(bytes([number])).digest(MIB)
            given.update(block)
            file.write(block)
    came, size = hashlib.sha256(), 0

    def take(data: bytes) -> None:
        nonlocal size
        came.update(data)
        size += len(data)

    config = runtime_config({}, Overrides(argv=["cat"]))
    with (tmp_path / "data").open("rb") as source:
        streams = Streams(take, stdin=source.fileno())
        process = guest.create("pipe", streams, config=config, share=ROOTFS_TAG)
        guest.start("pipe")
        assert guest.wait(process, SECONDS) == Ending(0, None)
    guest.delete("pipe")
    assert size == 64 * MIB
    assert came.digest() == given.digest()


def test_a_reader_that_reads_nothing_holds_up_nobody_else(guest: Guest) -> None:
    """One container's input stays unread and its output is more than a window: others go on."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    stuck = create(guest, "stuck", ["sleep", "1000"], stdin=ours)
    guest.start("stuck")

    def fill() -> None:
        while True:
            os.write(theirs, bytes(65536))
            outside(guest, "true")

    with pytest.raises(BlockingIOError):
        fill()
    assert in_container(guest, "echo fine") == (Ending(0, None), "fine\n", "")
    guest.delete("stuck")
    assert stuck.wait() == Ending(None, 9)
    os.close(ours)
    os.close(theirs)


def test_a_memory_limit_kills_the_container_and_not_the_guest(guest: Guest) -> None:
    greedy = "dd if=/dev/zero of=/dev/null bs=100M count=1"
    ending, _, err = in_container(guest, f"exec {greedy}", memory_bytes=32 * MIB)
    assert ending == Ending(None, 9, oom=True)
    ending, _, err = in_container(guest, f"exec {greedy}", memory_bytes=160 * MIB)
    assert (ending.status, "1+0 records out" in err) == (0, True)
    assert guest.report()["kernel"]


def test_limits_are_what_the_cgroup_says(guest: Guest) -> None:
    container = create(guest, "small", ["sleep", "1000"], memory_bytes=48 * MIB, pids=5, cpus=0.5)
    guest.start("small")
    stats: Any = guest.stats("small")
    assert stats["memory"]["limit"] == 48 * MIB
    assert 0 < stats["memory"]["current"] <= stats["memory"]["peak"] <= 48 * MIB
    assert stats["pids"] == {"current": 1, "limit": 5}
    assert outside(guest, "cat", "/sys/fs/cgroup/sevkit/small/cpu.max")[1] == "50000 100000\n"
    guest.delete("small")
    assert container.wait().signal == 9
    many = "for i in 1 2 3 4 5 6 7 8; do sleep 9 & done; echo all"
    _, out, err = in_container(guest, many, pids=5)
    assert "can't fork" in err
    assert "all" not in out
    assert (
        in_container(guest, "for i in 1 2 3 4; do sleep 0 & done; wait; echo all", pids=5)[1]
        == "all\n"
    )


def test_a_container_is_refused_what_its_guest_may_do(guest: Guest) -> None:
    """The same program, in a container and outside: what is refused there works here."""
    names = ("mount", "mknod", "reboot", "ptrace", "vsock", "inet")
    _, out, _ = in_container(guest, "exec tries")
    found = dict(line.split() for line in out.splitlines())
    assert tuple(found) == names
    assert [found[name] for name in names[:4]] == ["1"] * 4  # EPERM
    assert found["vsock"] == "38"  # ENOSYS
    assert found["inet"] == "0"
    assert outside(guest, "tries")[1].split()[1::2] == ["0"] * len(names)


def test_a_container_has_a_filter_few_capabilities_and_no_way_to_more(guest: Guest) -> None:
    hidden = "/proc/kcore /proc/kallsyms /proc/timer_list /sys/firmware /sys/kernel"
    shut = "/proc/sysrq-trigger /proc/sys/kernel/panic /sys/fs/cgroup/cgroup.procs"
    script = f"""
        cat /proc/self/status
        for p in {hidden}; do test -e $p && echo "$p:	$(cat $p $p/* 2>/dev/null | wc -c)"; done
        for p in {shut}; do echo "$p:	$(echo 1 2>&1 > $p)"; done 2>&1
    """
    _, out, _ = in_container(guest, script)
    status = dict(line.split(":\t", 1) for line in out.splitlines() if ":\t" in line)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert status["CapEff"] == status["CapBnd"] == "00000004800405fb"
    found = {path: status[path] for path in hidden.split() if path in status}
    assert set(found.values()) == {"0"}
    assert {"/proc/timer_list", "/sys/kernel", "/sys/firmware"} <= set(found)
    assert out.count("Read-only file system") == len(shut.split()) - 1, out


def test_a_container_may_read_the_kernel_log_and_not_clear_it(guest: Guest) -> None:
    _, out, _ = in_container(guest, "dmesg | grep -i -e sev -e 'IO TLB'; dmesg -c | wc -l")
    assert "software IO TLB" in out
    assert out.endswith("\n0\n")


def test_what_crun_refuses_is_said_in_its_words_and_the_agent_lives_on(guest: Guest) -> None:
    good: Any = runtime_config({}, Overrides(argv=["true"]))
    bad: Sequence[tuple[Any, str]] = [
        (
            {**good, "mounts": [{"destination": "/x", "type": "nofs", "source": "none"}]},
            "nofs|mount",
        ),
        ({**good, "process": {**good["process"], "args": ["no-such-thing"]}}, "no-such-thing"),
        ({"ociVersion": "1.0.2"}, "root|process"),
    ]
    for number, (config, words) in enumerate(bad):
        with pytest.raises(RefusedError, match=words):
            create(guest, f"bad{number}", [], config=config).finish()
    assert in_container(guest, "echo fine")[1] == "fine\n"
    with pytest.raises(RefusedError) as caught:
        guest.stats("nobody")
    assert caught.value.errno == 3  # ESRCH


def test_a_container_with_a_terminal_has_one_of_the_size_asked_for(guest: Guest) -> None:
    ours, theirs = os.pipe()
    script = "tty; stty size; read x; stty size; cat"
    container = create(guest, "term", ["sh", "-c", script], tty=True, stdin=ours)
    guest.start("term")
    guest.resize(container.process, 50, 132)
    os.write(theirs, b"go\n\x04")
    assert container.wait() == Ending(0, None)
    lines = container.out.decode().splitlines()
    assert "/dev/pts/0" in lines
    assert "50 132" in lines[-1]
    guest.delete("term")
    os.close(theirs)
    os.close(ours)


def test_the_host_finds_the_page_of_the_seed_it_gave_and_no_other(guest: Guest) -> None:
    seed = int.from_bytes(os.urandom(8))
    guest.marker(seed)
    found, searched = search(guest.qemu_pid, page_of(seed))
    assert found
    assert searched > 256 * MIB
    assert search(guest.qemu_pid, page_of(seed ^ 1))[0] == []


def test_attestation_says_what_is_missing_here(guest: Guest) -> None:
    with pytest.raises(RefusedError, match="could not attest") as caught:
        guest.attest(bytes(64))
    assert caught.value.errno == 19  # ENODEV


def test_the_agent_stays_small_after_all_that(guest: Guest) -> None:
    report: Any = guest.report()
    assert report["agent_rss_kib"] <= 2048
    assert outside(guest, "sh", "-c", "ls /sys/fs/cgroup/sevkit")[1].count("/") == 0
