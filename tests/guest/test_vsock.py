# SPDX-License-Identifier: Apache-2.0
"""The agent over vsock, and the agent in trouble: real guests, driven by the tests' own client.

No host here has vhost-vsock, so the connection comes from inside the guest, through loopback: a
command of the port's connection pumps bytes between its own streams and the agent's listener.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_guest import SHARE, Guest, booted
from agent_host import STDERR, STDOUT, Host, RefusedError

pytestmark = pytest.mark.boots

PUMP = Path(__file__).parents[1] / "data" / "vsock_pump.c"
LOOPBACK = ("/bin/vsock_pump", "1", "1024")
DEBUG = {"etc/sevkit-release": b"VARIANT=debug\n"}


class Tunnel:
    """What a `Host` needs of a socket, made of the streams of a process in the guest."""

    def __init__(self, outer: Host, process: int) -> None:
        self.outer = outer
        self.process = process

    def sendall(self, data: bytes) -> None:
        self.outer.feed(self.process, data)

    def recv(self, count: int) -> bytes:
        stream = self.outer.output[self.process, STDOUT]
        while not stream and (self.process, STDOUT) not in self.outer.ended:
            self.outer.receive()
        piece = bytes(stream[:count])
        del stream[:count]
        return piece


@pytest.fixture(scope="module")
def root(busybox_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The busybox tree and the pump."""
    root = tmp_path_factory.mktemp("vsock") / "root"
    shutil.copytree(busybox_root, root, symlinks=True)
    subprocess.run(
        ["gcc", "-Wall", "-Werror", "-O1", "-static", "-o", root / "bin" / "vsock_pump", PUMP],
        check=True,
    )
    return root


@pytest.fixture(scope="module")
def guest(sev_guest: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest of a debug image that takes vsock connections from anywhere."""
    place = tmp_path_factory.mktemp("guest")
    with booted(sev_guest, root, place, cmdline="sevkit.vsock=any", overlay=DEBUG) as guest:
        yield guest


def run(guest: Guest, *argv: str, **more: object) -> int:
    return guest.host.run(*argv, env=["PATH=/bin"], rootfs=SHARE, **more)


def through_vsock(guest: Guest) -> Host:
    process = run(guest, *LOOPBACK, stdin=True)
    return Host(Tunnel(guest.host, process))  # type: ignore[arg-type]


def close(host: Host) -> None:
    tunnel = host.sock
    assert isinstance(tunnel, Tunnel)
    tunnel.outer.end_stdin(tunnel.process)
    assert tunnel.outer.outcome(tunnel.process)[0] == {"status": 0}


def test_the_agent_serves_vsock_and_the_port_at_the_same_time(guest: Guest) -> None:
    second = through_vsock(guest)
    assert second.event() == {"event": "hello", "params": {"protocol": 2, "agent": "0.2.0"}}
    report = second.call("report")
    assert (report["debug"], report["sealed"], report["vsock_cid"]) == (True, False, None)
    data = b"0123456789abcdef" * 65536
    process = second.run("cat", env=["PATH=/bin"], rootfs=SHARE, stdin=True)
    second.feed(process, data)
    second.end_stdin(process)
    assert second.outcome(process) == ({"status": 0}, data, b"")
    with pytest.raises(RefusedError, match="not the owner") as refused:
        second.call("shutdown")
    assert refused.value.errno == 1
    third = run(guest, *LOOPBACK)
    assert guest.host.outcome(third)[1] == b""  # one at a time: not even a hello
    second.run("sleep", "1000", env=["PATH=/bin"], rootfs=SHARE)
    close(second)
    again = through_vsock(guest)
    assert again.event()["event"] == "hello"
    close(again)
    assert guest.host.call("report")["pid"] == 1


def test_nobody_in_the_guest_can_kill_the_agent(guest: Guest) -> None:
    for name in ("KILL", "SEGV", "ABRT", "BUS", "STOP", "PIPE", "33"):
        assert guest.host.outcome(run(guest, "kill", f"-{name}", "1"))[0] == {"status": 0}
    assert guest.host.call("report")["pid"] == 1


def test_a_guest_without_crun_says_so_and_lives_on(guest: Guest) -> None:
    host = guest.host
    assert host.outcome(run(guest, "mv", "/proc/1/root/usr/bin/crun", "/proc/1/root/crun"))[0] == {
        "status": 0
    }
    config = json.dumps({"ociVersion": "1.0.2", "root": {"path": "rootfs"}})
    with pytest.raises(RefusedError, match="no /usr/bin/crun") as refused:
        host.call("create", container="a", config=config, rootfs=SHARE)
    assert refused.value.errno == 2
    back = run(guest, "mv", "/proc/1/root/crun", "/proc/1/root/usr/bin/crun")
    assert host.outcome(back)[0] == {"status": 0}
    for bad, complaint in (
        ("{", "config: an object member without a key"),
        ('{"root":{"path":"/"}}', "config: root.path must be 'rootfs'"),
        ('{"root":{"path":"rootfs"},"linux":[]}', "config: linux must be an object"),
        (config, "crun: "),
    ):
        with pytest.raises(RefusedError, match=complaint) as refused:
            host.call("create", container="a", config=bad, rootfs=SHARE)
        assert refused.value.errno == 22
    with pytest.raises(RefusedError, match="no workload image"):
        host.call("create", container="a")
    with pytest.raises(RefusedError, match="cannot mount the 9p share 'other'"):
        host.call("create", container="a", config=config, rootfs={"type": "9p", "tag": "other"})
    left = host.outcome(run(guest, "ls", "/proc/1/root/run/sevkit/containers"))
    assert left == ({"status": 0}, b"", b"")


def test_out_of_memory_ends_a_process_and_not_the_agent(guest: Guest) -> None:
    assert guest.host.outcome(run(guest, "tail", "/dev/zero"))[0] == {"signal": 9}
    report = guest.host.call("report")
    assert report["pid"] == 1
    assert report["agent_rss_kib"] <= 2048


def test_out_of_processes_is_an_answer_and_the_guest_still_powers_off(guest: Guest) -> None:
    host = guest.host
    limit = "echo 20 > /proc/sys/kernel/threads-max"  # which the kernel's own exceed already
    assert host.outcome(run(guest, "sh", "-c", limit))[0] == {"status": 0}
    for method, params in (
        ("run", {"argv": ["/bin/true"], "rootfs": SHARE}),
        ("create", {"container": "a", "config": "{}", "rootfs": SHARE}),
        ("attest", {"data": "00" * 64}),
    ):
        with pytest.raises(RefusedError, match="cannot start a process") as refused:
            host.call(method, **params)
        assert refused.value.errno == 11
    assert host.call("report")["pid"] == 1
    host.ask("shutdown")
    assert guest.end() == 0
    assert "Power down" in guest.console()


def test_only_a_debug_image_takes_vsock_from_anywhere(
    sev_guest: Path, root: Path, tmp_path: Path
) -> None:
    with booted(sev_guest, root, tmp_path, cmdline="sevkit.vsock=any") as guest:
        end, out, err = guest.host.outcome(run(guest, *LOOPBACK))
        assert (end, out) == ({"status": 1}, b"")
        assert b"vsock_pump: Connection" in err
        assert guest.host.call("report")["debug"] is False
        guest.host.send(STDERR, b"")  # no host may send that: the guest powers off with a reason
        assert guest.host.event()["event"] == "malformed"
        guest.host.sock.close()
        assert guest.end() == 0
        assert "a frame of type 3, which the host may not send; powering off" in guest.console()
