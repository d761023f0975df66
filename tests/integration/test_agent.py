# SPDX-License-Identifier: Apache-2.0
"""The agent's service as the host sees it: the real C program, with sanitizers, on a socket.

Leaves out what only PID 1 of a guest can do (mounts, roots, containers, powering off): see
tests/guest.
"""

import json
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from agent_host import (
    CREDIT,
    FAILED,
    HOST_LEFT,
    IGNORING_32_AND_33,
    PATIENCE,
    SHUTDOWN,
    SIGNALLED,
    STDOUT,
    Agent,
    Host,
    RefusedError,
    serving,
)

AGENT_DIR = Path(__file__).parents[2] / "agent"


def frame(length: int, kind: int, reserved: int, process: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IBBH", length, kind, reserved, process) + payload


def control(message: str) -> bytes:
    return frame(len(message), 0, 0, 0, message.encode())


def test_hello_comes_first_and_a_report_when_asked(agent_check_dir: Path, tmp_path: Path) -> None:
    with serving(agent_check_dir / "serve", tmp_path) as agent:
        host = agent.owner
        hello = {"event": "hello", "params": {"protocol": 2, "agent": "0.2.0"}}
        assert host.event() == hello
        report = host.call("report")
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
        assert report["pid"] == agent.pid
        assert (report["sealed"], report["debug"]) == (False, False)
        assert {"swiotlb", "root_fstype", "agent_rss_kib", "vsock_cid"} < set(report)


def test_streams_come_apart_and_the_status_with_them(host: Host) -> None:
    process = host.run("sh", "-c", "echo out; echo err >&2; exit 7")
    assert host.outcome(process) == ({"status": 7}, b"out\n", b"err\n")


@pytest.mark.parametrize("status", [0, 1, 125, 128, 255])
def test_a_status_arrives_as_it_is(host: Host, status: int) -> None:
    assert host.outcome(host.run("sh", "-c", f"exit {status}"))[0] == {"status": status}


def test_environment_and_folder_are_exactly_those_asked_for(host: Host) -> None:
    process = host.run("/usr/bin/env", env=["B=2", "A=ä"], cwd="/usr")
    assert host.outcome(process) == ({"status": 0}, "B=2\nA=ä\n".encode(), b"")
    assert host.outcome(host.run("pwd", cwd="/usr")) == ({"status": 0}, b"/usr\n", b"")


def test_a_signal_is_sent_and_told_as_one(host: Host) -> None:
    process = host.run("sleep", "60")
    assert host.call("signal", process=process, signal=10) == {}
    assert host.outcome(process)[0] == {"signal": 10}
    process = host.run("true")
    while (process, STDOUT) not in host.ended:
        host.receive()
    time.sleep(0.2)  # its streams end a little before it does
    with pytest.raises(RefusedError) as refused:
        host.call("signal", process=process, signal=15)
    assert refused.value.errno == 3
    assert host.outcome(process)[0] == {"status": 0}


def test_a_missing_command_is_127_and_one_that_cannot_run_126(host: Host, tmp_path: Path) -> None:
    assert host.outcome(host.run("no-such-command")) == (
        {"status": 127},
        b"",
        b"sevkit-agent: no-such-command: not found\n",
    )
    plain = tmp_path / "plain"
    plain.write_text("hello\n")
    assert host.outcome(host.run(str(plain)))[0] == {"status": 126}
    plain.chmod(0o755)
    end, _, message = host.outcome(host.run(str(plain)))
    assert end == {"status": 126}
    assert b"Exec format error" in message
    plain.write_text("#!/no/such/interpreter\n")
    end, _, message = host.outcome(host.run("plain", env=[f"PATH=/nowhere:{tmp_path}"]))
    assert end == {"status": 126}
    assert b"interpreter is missing" in message


def test_a_folder_that_is_missing_is_an_error_and_nothing_runs(host: Host) -> None:
    with pytest.raises(RefusedError, match="/no/such/folder") as refused:
        host.run("true", cwd="/no/such/folder")
    assert refused.value.errno == 2
    assert host.outcome(host.run("true"))[0] == {"status": 0}


def test_many_processes_run_at_once_and_answers_come_as_they_end(host: Host) -> None:
    slow = host.run("sh", "-c", "sleep 0.5; echo slow")
    wait = host.ask("wait", process=slow)
    quick = [host.run("sh", "-c", f"echo {i}; exit {i}") for i in range(20)]
    for i, process in enumerate(quick):
        assert host.outcome(process) == ({"status": i}, f"{i}\n".encode(), b"")
    assert wait not in host.answers
    assert host.answer(wait) == {"status": 0}
    assert host.output[slow, STDOUT] == b"slow\n"


def test_the_65th_process_is_refused_until_there_is_a_place(host: Host) -> None:
    processes = [host.run("sleep", "60") for _ in range(64)]
    assert len(set(processes)) == 64
    with pytest.raises(RefusedError) as refused:
        host.run("true")
    assert refused.value.errno == 11
    host.call("signal", process=processes[0], signal=9)
    assert host.outcome(processes[0])[0] == {"signal": 9}
    assert host.outcome(host.run("true"))[0] == {"status": 0}


def test_a_number_is_given_out_again_only_much_later(host: Host) -> None:
    first = host.run("true")
    host.outcome(first)
    second = host.run("true")
    host.outcome(second)
    assert second == first + 1
    host.send(1, b"late", first)  # crossed its end: nothing
    host.grant(first, STDOUT, 4)
    with pytest.raises(RefusedError) as refused:
        host.call("wait", process=first)
    assert refused.value.errno == 3


def test_a_second_wait_at_once_is_refused(host: Host) -> None:
    process = host.run("sleep", "60")
    first = host.ask("wait", process=process)
    with pytest.raises(RefusedError) as refused:
        host.call("wait", process=process)
    assert refused.value.errno == 16
    host.call("signal", process=process, signal=9)
    assert host.answer(first) == {"signal": 9}


def test_what_outlives_the_command_does_not_hold_its_end_up(host: Host) -> None:
    started = time.monotonic()
    process = host.run("sh", "-c", "sleep 60 & echo out")
    assert host.outcome(process)[:2] == ({"status": 0}, b"out\n")
    assert time.monotonic() - started < 20


def test_orphans_are_reaped(agent: Agent) -> None:
    process = agent.owner.run("sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.1 &) ; done")
    assert agent.owner.outcome(process)[0] == {"status": 0}
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
    end = time.monotonic() + PATIENCE
    while children.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_command_gets_no_descriptor_of_the_agent(host: Host) -> None:
    others = [host.run("sleep", "60", stdin=True) for _ in range(3)]
    _, out, _ = host.outcome(host.run("sh", "-c", "ls /proc/self/fd"))
    assert out.split() == [b"0", b"1", b"2", b"3"]  # 3: the folder that ls reads
    assert len(others) == 3
    stat, shell = host.outcome(host.run("sh", "-c", "cut -d' ' -f1,6 /proc/self/stat; echo $$"))[
        1
    ].split(b"\n")[:2]
    assert stat.split()[1] == shell  # it leads its session


def test_a_command_gets_ordinary_signals_whatever_the_agent_got(
    agent_check_dir: Path, tmp_path: Path
) -> None:
    with serving(agent_check_dir / "serve", tmp_path, through=IGNORING_32_AND_33) as agent:
        host = agent.owner
        assert host.event()["event"] == "hello"
        status = Path(f"/proc/{agent.pid}/status").read_text()
        assert int(status.split("SigIgn:")[1].split()[0], 16) >> 31 & 3 == 3
        process = host.run("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")
        lines = host.outcome(process)[1].decode().splitlines()
        assert [line.split()[1] for line in lines] == ["0" * 16, "0" * 16]


@pytest.mark.parametrize(
    ("method", "params", "complaint"),
    [
        ("run", {}, "argv"),
        ("run", {"argv": []}, "argv"),
        ("run", {"argv": [""]}, "argv"),
        ("run", {"argv": ["a", 1]}, "argv"),
        ("run", {"argv": ["a\0b"]}, "argv"),
        ("run", {"argv": ["true"], "env": ["novalue"]}, "env"),
        ("run", {"argv": ["true"], "env": ["=value"]}, "env"),
        ("run", {"argv": ["true"], "env": {"A": "b"}}, "env"),
        ("run", {"argv": ["true"], "cwd": "relative"}, "cwd"),
        ("run", {"argv": ["true"], "stdin": 1}, "stdin"),
        ("run", {"argv": ["true"], "tty": True}, "tty"),
        ("run", {"argv": ["true"], "tty": {"rows": 0, "columns": 1}}, "rows"),
        ("run", {"argv": ["true"], "tty": {"lines": 1}}, "tty"),
        ("run", {"argv": ["true"], "rootfs": {"type": "nfs", "tag": "x"}}, "rootfs.type"),
        ("run", {"argv": ["true"], "rootfs": {"type": "image"}}, "rootfs.type"),
        ("run", {"argv": ["true"], "rootfs": {"type": "9p"}}, "rootfs.tag"),
        ("run", {"argv": ["true"], "rootfs": {"type": "9p", "tag": "x", "ro": True}}, "rootfs"),
        ("run", {"argv": ["true"], "user": {"uid": 1}}, "user"),
        ("wait", {}, "process"),
        ("wait", {"process": 65536}, "process"),
        ("signal", {"process": 1, "signal": 65}, "signal"),
        ("signal", {"process": 1, "signal": 0}, "signal"),
        ("resize", {"process": 1, "rows": 1, "columns": 65536}, "columns"),
        ("create", {"container": ".a"}, "container"),
        ("create", {"container": "a/b"}, "container"),
        ("create", {"container": "a" * 65}, "container"),
        ("create", {"container": "a", "rootfs": None}, "rootfs"),
        ("create", {"container": "a", "config": {}}, "config"),
        ("exec", {"container": "a", "argv": ["true"], "user": {"uid": -1}}, "user.uid"),
        ("attest", {"data": "00"}, "data"),
        ("attest", {"data": "g" * 128}, "data"),
        ("marker", {"seed": "0" * 17}, "seed"),
        ("report", {"verbose": True}, "verbose"),
        ("shutdown", {"now": True}, "now"),
    ],
)
def test_wrong_params_are_refused_by_name_and_good_ones_after_them_served(
    host: Host, method: str, params: Any, complaint: str
) -> None:
    with pytest.raises(RefusedError) as refused:
        host.call(method, **params)
    assert refused.value.errno == 22
    assert refused.value.what.startswith(complaint + ":")
    assert host.outcome(host.run("true"))[0] == {"status": 0}


def test_an_unknown_method_is_refused_by_name(host: Host) -> None:
    for name in ("dance", "x" * 60000):
        with pytest.raises(RefusedError) as refused:
            host.call(name)
        assert refused.value.errno == 38
        assert name[:50] in refused.value.what
    assert host.outcome(host.run("true"))[0] == {"status": 0}


def test_more_than_64_open_requests_are_refused(host: Host) -> None:
    processes = [host.run("sleep", "60") for _ in range(64)]
    waits = [host.ask("wait", process=process) for process in processes]
    with pytest.raises(RefusedError) as refused:
        host.call("report")
    assert refused.value.errno == 16
    assert not set(waits) & set(host.answers)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (frame(65537, 0, 0, 0), "65537 bytes"),
        (frame(0xFFFFFFFF, 1, 0, 1), "4294967295 bytes"),
        (frame(0, 2, 0, 1), "type 2"),
        (frame(0, 5, 0, 1), "type 5"),
        (frame(0, 0, 9, 0), "reserved"),
        (frame(0, 0, 0, 0), "not a JSON value"),
        (frame(2, 0, 0, 1, b"{}"), "for a process"),
        (control("{}"), "not a request"),
        (control("[{}]"), "not a request"),
        (control('{"id":1,"method":"report"}'), "not a request"),
        (control('{"id":0,"method":"report","params":{}}'), "not a request"),
        (control('{"id":9007199254740992,"method":"report","params":{}}'), "not a request"),
        (control('{"id":1,"method":"report","params":{},"more":1}'), "not a request"),
        (control('{"id":1,"id":2,"method":"report","params":{}}'), "same key twice"),
        (control('{"id":1.5,"method":"report","params":{}}'), "not whole"),
        (control("[" * 17 + "]" * 17), "nested too deeply"),
        (control("[" + "1," * 5000 + "1]"), "too many values"),
        (control('{"id":1,"method":"report","params":{}} x'), "after the value"),
        (frame(3, 0, 0, 0, b'"\xff"'), "UTF-8"),
        (frame(5, 1, 0, 2, b"stdin"), "process 2"),
        (frame(5, 1, 0, 0, b"stdin"), "process 0"),
        (frame(8, 4, 0, 7, bytes(8)), "process 7"),
    ],
)
def test_malformed_input_gets_one_event_and_ends_the_agent(
    agent: Agent, data: bytes, complaint: str
) -> None:
    agent.owner.sock.sendall(data)
    event = agent.owner.event()
    assert event["event"] == "malformed"
    assert complaint in event["params"]["what"]
    agent.owner.sock.close()
    assert agent.end() == FAILED
    assert complaint in agent.process.communicate()[1]


@pytest.mark.parametrize(
    ("kind", "payload", "complaint"),
    [
        (1, bytes(32769), "more stdin"),
        (CREDIT, struct.pack("<II", 2, 1), "credit"),
        (CREDIT, struct.pack("<II", 1, 1), "credit"),
        (CREDIT, struct.pack("<II", 2, 0), "credit"),
        (CREDIT, bytes(7), "7 bytes"),
        (0, b'{"id":1,"method":"report","params":{}}', "another open request"),
    ],
)
def test_a_broken_window_or_an_id_in_use_is_malformed(
    agent: Agent, kind: int, payload: bytes, complaint: str
) -> None:
    host = agent.owner
    process = host.run("sleep", "60", stdin=True)
    if kind == 0:
        host.ask("wait", process=process)
        payload = payload.replace(b'"id":1', b'"id":2')
    host.send(kind, payload, 0 if kind == 0 else process)
    event = host.event()
    assert event["event"] == "malformed"
    assert complaint in event["params"]["what"]


def test_a_frame_cut_short_is_waited_for_and_then_nothing(agent: Agent) -> None:
    data = control('{"id":1,"method":"report","params":{}}')
    agent.owner.sock.sendall(data[:20])
    time.sleep(0.1)
    agent.owner.sock.sendall(data[20:])
    assert agent.owner.answer(1)["pid"] == agent.pid
    agent.owner.sock.sendall(data[:20])
    agent.owner.sock.close()
    assert agent.end() == HOST_LEFT


def test_a_flood_of_requests_is_answered_to_the_last(host: Host) -> None:
    sent = 0
    for _ in range(20):
        for _ in range(200):
            sent += 1
            message = json.dumps({"id": sent, "method": "dance", "params": {}})
            host.sock.sendall(control(message))
        while len(host.answers) < sent:
            host.receive()
    assert all(answer["error"]["errno"] == 38 for answer in host.answers.values())


def test_a_host_that_does_not_hang_up_after_an_error_is_left(agent: Agent) -> None:
    agent.owner.send(STDOUT, b"")
    assert agent.owner.event()["event"] == "malformed"
    with pytest.raises(EOFError):
        agent.owner.receive()
    assert agent.end() == FAILED


def test_shutdown_ends_the_agent_also_while_a_command_runs(agent: Agent) -> None:
    agent.owner.run("sleep", "60")
    agent.owner.ask("shutdown")
    assert agent.end() == SHUTDOWN


def test_a_host_that_hangs_up_ends_the_agent(agent: Agent) -> None:
    agent.owner.run("sleep", "60")
    agent.owner.sock.close()
    assert agent.end() == HOST_LEFT


def test_sigterm_ends_the_agent(agent: Agent) -> None:
    agent.process.terminate()
    assert agent.end() == SIGNALLED


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
        subprocess.run(["make", "-s", "-j2", "-C", AGENT_DIR, f"O={out}"], check=True)
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
