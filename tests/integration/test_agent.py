# SPDX-License-Identifier: Apache-2.0
"""The agent's service as the host sees it: the real C program, with sanitizers, on a socket.

Leaves out what only PID 1 of a guest can do (mounts, the 9p root, powering off): see tests/guest.
"""

import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

AGENT_DIR = Path(__file__).parents[2] / "agent"
CONTROL, STDIN, STDOUT, STDERR = range(4)
SHUTDOWN, HOST_LEFT, SIGNALLED, FAILED = range(10, 14)
PATIENCE = 30.0
# Some parents ignore the two signals that the C library refuses to touch: rt_sigaction(2) itself.
IGNORING_32_AND_33 = """
import ctypes, os, struct, sys
ignore = struct.pack("<4Q", 1, 0, 0, 0)
for number in (32, 33):
    assert ctypes.CDLL(None).syscall(13, number, ignore, None, 8) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


class Host:
    """The host's end of the port, and the agent's process at the other."""

    def __init__(self, sock: socket.socket, agent: subprocess.Popen[str]):
        self.sock = sock
        self.agent = agent

    def send(self, kind: int, payload: bytes, process: int = 0) -> None:
        self.sock.sendall(struct.pack("<IBBH", len(payload), kind, 0, process) + payload)

    def ask(self, message: Any) -> None:
        self.send(CONTROL, json.dumps(message).encode())

    def run(self, *argv: str, **more: Any) -> None:
        env = [f"PATH={os.environ['PATH']}"]
        self.ask({"run": {"argv": argv, "env": env, "rootfs": None, **more}})

    def receive(self) -> tuple[int, int, bytes]:
        length, kind, zero, process = struct.unpack("<IBBH", self._exactly(8))
        assert zero == 0
        return kind, process, self._exactly(length)

    def message(self) -> Any:
        kind, process, payload = self.receive()
        assert (kind, process) == (CONTROL, 0), payload
        return json.loads(payload)

    def outcome(self) -> tuple[dict[str, int], bytes, bytes]:
        """What `exited` says, and all of stdout and stderr. Takes the second report as well."""
        streams = {STDOUT: bytearray(), STDERR: bytearray()}
        while True:
            kind, process, payload = self.receive()
            if kind == CONTROL:
                break
            assert process == 1
            assert payload
            streams[kind] += payload
        exited = json.loads(payload)["exited"]
        assert "report" in self.message()
        return exited, bytes(streams[STDOUT]), bytes(streams[STDERR])

    def end(self) -> int:
        return self.agent.wait(PATIENCE)

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                raise EOFError(f"the agent left after {bytes(data)!r}")
            data += piece
        return bytes(data)


@pytest.fixture(scope="session")
def check_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `make check` has compiled and run the agent's own tests."""
    out = tmp_path_factory.mktemp("agent")
    made = subprocess.run(
        ["make", "-C", AGENT_DIR, "check", f"O={out}"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return out / "check"


@contextmanager
def serving(check_dir: Path, through: Sequence[str] = ()) -> Iterator[Host]:
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    with subprocess.Popen(
        [*through, check_dir / "serve", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        theirs.close()
        try:
            yield Host(ours, agent)
        finally:
            ours.close()
            agent.kill()


@pytest.fixture
def host(check_dir: Path) -> Iterator[Host]:
    """An agent that has said hello."""
    with serving(check_dir) as host:
        assert set(host.message()) == {"hello"}
        assert set(host.message()) == {"report"}
        yield host


def test_hello_and_a_complete_report_come_first(check_dir: Path) -> None:
    with serving(check_dir) as host:
        assert host.message() == {"hello": {"protocol": 1, "agent": "0.1.0"}}
        report = host.message()["report"]
        assert report["kernel"] == os.uname().release
        assert 0 < report["uptime_ms"] <= time.clock_gettime(time.CLOCK_BOOTTIME) * 1000
        assert set(report["sev"]) == {"cpu", "kernel", "active", "guest_device"}
        memory = report["memory"]
        assert 0 < memory["used_kib"] < memory["total_kib"]
        assert 0 < memory["available_kib"] < memory["total_kib"]
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        assert report["root_fstype"] == [fs for _, on, fs, *_ in mounts if on == "/"][-1]
        devices = Path("/sys/bus/virtio/devices")
        if devices.is_dir():
            assert {
                device["device"]: (device["id"], device["access_platform"])
                for device in report["virtio"]
            } == {
                path.name: (
                    int((path / "device").read_text(), 0),
                    (path / "features").read_text()[33] == "1"
                    if (path / "driver").exists()
                    else None,
                )
                for path in devices.iterdir()
            }
        else:
            assert report["virtio"] is None
        assert report["pid"] == host.agent.pid
        assert report["debug"] is Path("/etc/sevkit-release").exists()
        assert {"swiotlb", "virtio", "root_fstype", "agent_rss_kib"} < set(report)


def test_streams_come_apart_and_the_status_with_them(host: Host) -> None:
    host.run("sh", "-c", "echo out; echo err >&2; exit 7")
    assert host.outcome() == ({"status": 7}, b"out\n", b"err\n")


def test_environment_and_folder_are_exactly_those_asked_for(host: Host) -> None:
    host.run("/usr/bin/env", env=["B=2", "A=ä"], cwd="/usr")
    assert host.outcome() == ({"status": 0}, "B=2\nA=ä\n".encode(), b"")
    host.run("pwd", cwd="/usr")
    assert host.outcome() == ({"status": 0}, b"/usr\n", b"")


def test_death_by_a_signal_is_told_as_one(host: Host) -> None:
    host.run("sh", "-c", "kill -9 $$")
    assert host.outcome()[0] == {"signal": 9}


def test_a_missing_command_is_127_and_one_that_cannot_run_126(host: Host, tmp_path: Path) -> None:
    host.run("no-such-command")
    assert host.outcome() == (
        {"status": 127},
        b"",
        b"sevkit-agent: no-such-command: not found\n",
    )
    plain = tmp_path / "plain"
    plain.write_text("hello\n")
    host.run(str(plain))
    assert host.outcome()[0] == {"status": 126}
    plain.chmod(0o755)
    host.run(str(plain))
    exited, _, message = host.outcome()
    assert exited == {"status": 126}
    assert b"Exec format error" in message
    plain.write_text("#!/no/such/interpreter\n")
    host.run("plain", env=[f"PATH=/nowhere:{tmp_path}"])
    exited, _, message = host.outcome()
    assert exited == {"status": 126}
    assert b"interpreter is missing" in message


def test_a_folder_that_is_missing_is_an_error_and_nothing_runs(host: Host) -> None:
    host.run("true", cwd="/no/such/folder")
    error = host.message()["error"]
    assert (error["request"], error["errno"]) == ("run", 2)
    assert "/no/such/folder" in error["what"]
    host.run("true")
    assert host.outcome()[0] == {"status": 0}


def test_64_mib_arrive_unharmed_at_a_host_that_starts_to_read_late(host: Host) -> None:
    script = "seq 1 9000000 | head -c 67108864; echo end >&2"
    expected = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    host.run("sh", "-c", script)
    time.sleep(0.5)
    exited, out, err = host.outcome()
    assert exited == {"status": 0}
    assert err == b"end\n"
    assert len(out) == 64 << 20
    assert hashlib.sha256(out).digest() == hashlib.sha256(expected).digest()


def test_a_host_that_does_not_read_costs_neither_memory_nor_time(host: Host) -> None:
    host.run("yes")
    time.sleep(0.5)
    stat = Path(f"/proc/{host.agent.pid}/stat")

    def used_ticks() -> int:
        fields = stat.read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = used_ticks()
    time.sleep(1)
    assert used_ticks() - before <= 2
    host.ask({"shutdown": {}})
    assert host.agent.poll() is None  # not heard before its answer would have room


def test_stdin_is_relayed_and_ends(host: Host) -> None:
    data = os.urandom(300_000)
    host.run("sha256sum", stdin=True)
    for start in range(0, len(data), 65536):
        host.send(STDIN, data[start : start + 65536], process=1)
    host.send(STDIN, b"", process=1)
    assert host.outcome()[1].split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_stdin_that_nobody_reads_holds_nothing_up(host: Host) -> None:
    host.run("sh", "-c", "exec <&-; sleep 0.2; echo done", stdin=True)
    for _ in range(40):
        host.send(STDIN, bytes(65536), process=1)
    assert host.outcome()[1] == b"done\n"
    host.run("cat")
    assert host.outcome() == ({"status": 0}, b"", b"")


def test_what_outlives_the_command_does_not_hold_its_end_up(host: Host) -> None:
    started = time.monotonic()
    host.run("sh", "-c", "sleep 60 & echo out")
    assert host.outcome()[:2] == ({"status": 0}, b"out\n")
    assert time.monotonic() - started < 20


def test_orphans_are_reaped(host: Host) -> None:
    host.run("sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.1 &) ; done")
    assert host.outcome()[0] == {"status": 0}
    children = Path(f"/proc/{host.agent.pid}/task/{host.agent.pid}/children")
    end = time.monotonic() + PATIENCE
    while children.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_command_gets_no_descriptor_of_the_agent(host: Host) -> None:
    host.run("sh", "-c", "ls /proc/self/fd")
    assert host.outcome()[1].split() == [b"0", b"1", b"2", b"3"]  # 3: the folder that ls reads
    host.run("sh", "-c", "cut -d' ' -f1,6 /proc/self/stat; echo $$")
    stat, shell = host.outcome()[1].split(b"\n")[:2]
    assert stat.split()[1] == shell  # it leads its session


def test_a_command_gets_ordinary_signals_whatever_the_agent_got(check_dir: Path) -> None:
    with serving(check_dir, [sys.executable, "-c", IGNORING_32_AND_33]) as host:
        assert set(host.message()) == {"hello"}
        status = Path(f"/proc/{host.agent.pid}/status").read_text()
        assert int(status.split("SigIgn:")[1].split()[0], 16) >> 31 & 3 == 3
        assert set(host.message()) == {"report"}
        host.run("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")
        lines = host.outcome()[1].decode().splitlines()
        assert [line.split()[1] for line in lines] == ["0" * 16, "0" * 16]


def test_a_second_command_at_once_is_refused(host: Host) -> None:
    host.run("sleep", "60")
    host.run("true")
    assert host.message()["error"]["errno"] == 16


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({}, "argv"),
        ({"argv": []}, "argv"),
        ({"argv": [""]}, "argv"),
        ({"argv": ["a", 1]}, "argv"),
        ({"argv": ["a\0b"]}, "argv"),
        ({"argv": ["true"], "env": ["novalue"]}, "env"),
        ({"argv": ["true"], "env": {"A": "b"}}, "env"),
        ({"argv": ["true"], "cwd": "relative"}, "cwd"),
        ({"argv": ["true"], "stdin": 1}, "stdin"),
        ({"argv": ["true"], "rootfs": {"type": "nfs", "tag": "x"}}, "rootfs.type"),
        ({"argv": ["true"], "rootfs": {"type": "9p"}}, "rootfs.tag"),
        ({"argv": ["true"], "rootfs": {"type": "9p", "tag": "x", "ro": True}}, "rootfs"),
        ({"argv": ["true"], "user": "nobody"}, "user"),
        ([], "run"),
    ],
)
def test_a_wrong_request_is_refused_and_a_right_one_after_it_served(
    host: Host, body: Any, complaint: str
) -> None:
    host.ask({"run": body})
    error = host.message()["error"]
    assert (error["request"], error["errno"]) == ("run", 22)
    assert error["what"].startswith(complaint + ":")
    host.run("true")
    assert host.outcome()[0] == {"status": 0}


def test_an_unknown_request_is_refused_by_name(host: Host) -> None:
    host.ask({"dance": {}})
    assert host.message() == {"error": {"request": "dance", "what": "no such request", "errno": 38}}
    host.ask({"x" * 60000: {}})
    assert host.message()["error"]["errno"] == 38
    host.run("true")
    assert host.outcome()[0] == {"status": 0}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (struct.pack("<IBBH", 65537, 0, 0, 0), "65537 bytes"),
        (struct.pack("<IBBH", 0, 2, 0, 1), "type 2"),
        (struct.pack("<IBBH", 0, 0, 9, 0), "reserved"),
        (struct.pack("<IBBH", 0, 0, 0, 0), "not a JSON value"),
        (struct.pack("<IBBH", 2, 0, 0, 1) + b"{}", "for a process"),
        (struct.pack("<IBBH", 2, 0, 0, 0) + b"{}", "exactly one key"),
        (struct.pack("<IBBH", 4, 0, 0, 0) + b"[{}]", "exactly one key"),
        (struct.pack("<IBBH", 5, 1, 0, 2) + b"stdin", "process 2"),
        (struct.pack("<IBBH", 3, 0, 0, 0) + b'"\xff"', "UTF-8"),
    ],
)
def test_malformed_input_gets_one_error_and_ends_the_agent(
    host: Host, data: bytes, complaint: str
) -> None:
    host.sock.sendall(data)
    error = host.message()["error"]
    assert error["request"] is None
    assert complaint in error["what"]
    host.sock.close()
    assert host.end() == FAILED
    assert complaint in host.agent.communicate()[1]


def test_a_host_that_does_not_hang_up_after_an_error_is_left(host: Host) -> None:
    host.send(STDOUT, b"")
    assert "error" in host.message()
    with pytest.raises(EOFError):
        host.receive()
    assert host.end() == FAILED


def test_shutdown_ends_the_agent_also_while_a_command_runs(host: Host) -> None:
    host.run("sleep", "60")
    host.ask({"shutdown": {}})
    assert host.end() == SHUTDOWN


def test_a_host_that_hangs_up_ends_the_agent(host: Host) -> None:
    host.run("sleep", "60")
    host.sock.close()
    assert host.end() == HOST_LEFT


def test_sigterm_ends_the_agent(host: Host) -> None:
    host.agent.terminate()
    assert host.end() == SIGNALLED


@pytest.mark.skipif(not shutil.which("cppcheck"), reason="needs the package cppcheck")
def test_cppcheck_finds_nothing() -> None:
    checked = subprocess.run(
        ["cppcheck", "--std=c11", "--enable=warning,style,performance,portability", "--quiet",
         "--inline-suppr", "--error-exitcode=1", "-I", AGENT_DIR, AGENT_DIR],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stderr


def test_the_binary_is_small_hardened_and_the_same_twice(tmp_path: Path) -> None:
    binaries = []
    for name in ("one", "another"):
        out = tmp_path / name
        subprocess.run(["make", "-s", "-C", AGENT_DIR, f"O={out}"], check=True)
        binaries.append((out / "sevkit-agent").read_bytes())
    assert binaries[0] == binaries[1]
    assert len(binaries[0]) <= 100 << 10

    def readelf(option: str, name: str = "sevkit-agent") -> str:
        done = subprocess.run(
            ["readelf", "-W", option, tmp_path / "one" / name],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    assert "DYN (" in readelf("-h")
    dynamic = readelf("-d")
    assert "BIND_NOW" in dynamic
    assert [line.split()[-1] for line in dynamic.splitlines() if "(NEEDED)" in line] == [
        "[libc.so.6]"
    ]
    segments = readelf("-l")
    assert "GNU_RELRO" in segments
    stack = next(line for line in segments.splitlines() if "GNU_STACK" in line)
    assert " RW " in stack
    assert "x86 feature: IBT, SHSTK" in readelf("-n", "service.o")
    symbols = readelf("--dyn-syms")
    assert "__stack_chk_fail" in symbols
    assert "_chk@" in symbols
    assert "chroot@" in symbols
    assert "pivot_root" not in symbols
    assert " syscall@" not in symbols  # which could call it by number
