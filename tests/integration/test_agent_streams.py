# SPDX-License-Identifier: Apache-2.0
"""The agent's streams, terminals and connections, as the host sees them: see test_agent.py."""

import hashlib
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_host import (
    FAILED,
    PATIENCE,
    SHUTDOWN,
    STDERR,
    STDIN,
    STDOUT,
    WINDOW,
    Agent,
    Host,
    RefusedError,
    serving,
)

MIB = 1 << 20


@pytest.fixture
def sealed(agent_check_dir: Path, tmp_path: Path) -> Iterator[Host]:
    with serving(agent_check_dir / "serve", tmp_path, sealed=True) as agent:
        yield agent.owner


def used_ticks(agent: Agent) -> int:
    fields = Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def receive_for(host: Host, seconds: float) -> None:
    """Take in whatever arrives within that time."""
    end = time.monotonic() + seconds
    try:
        while (left := end - time.monotonic()) > 0:
            host.sock.settimeout(left)
            host.receive()
    except TimeoutError:
        pass
    finally:
        host.sock.settimeout(PATIENCE)


def test_64_mib_pass_through_a_process_both_ways_unharmed(host: Host) -> None:
    data = os.urandom(MIB) * 64
    process = host.run("cat", stdin=True)
    host.feed(process, data)
    host.end_stdin(process)
    end, out, err = host.outcome(process)
    assert (end, err) == ({"status": 0}, b"")
    assert len(out) == 64 * MIB
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()


def test_what_is_written_before_the_end_arrives_before_the_end(host: Host) -> None:
    script = "seq 1 900000; echo end >&2"
    expected = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    process = host.run("sh", "-c", script)
    time.sleep(0.3)
    assert host.outcome(process) == ({"status": 0}, expected.stdout, b"end\n")


def test_a_process_that_nobody_reads_holds_up_itself_and_nobody_else(agent: Agent) -> None:
    host = agent.owner
    host.greedy = False
    loud = host.run("yes")
    while len(host.output[loud, STDOUT]) < WINDOW:
        host.receive()
    before = used_ticks(agent)
    receive_for(host, 1)
    assert len(host.output[loud, STDOUT]) == WINDOW
    assert used_ticks(agent) - before <= 2  # nor does it cost anything
    assert host.outcome(host.run("echo", "other")) == ({"status": 0}, b"other\n", b"")
    host.grant(loud, STDOUT, 1000)
    receive_for(host, 0.3)
    assert len(host.output[loud, STDOUT]) == WINDOW + 1000
    host.call("signal", process=loud, signal=9)
    wait = host.ask("wait", process=loud)
    receive_for(host, 0.2)
    assert wait not in host.answers  # what it left in its pipe is not sent yet
    host.greedy = True
    host.grant(loud, STDOUT, WINDOW)
    assert host.answer(wait) == {"signal": 9}


def test_a_stream_that_is_held_up_does_not_hold_up_its_sister(host: Host) -> None:
    host.greedy = False
    process = host.run("sh", "-c", "yes & sleep 0.2; echo err >&2; sleep 60")
    while host.output[process, STDERR] != b"err\n":
        host.receive()
    assert len(host.output[process, STDOUT]) == WINDOW


def test_a_process_that_reads_nothing_holds_up_itself_and_nobody_else(agent: Agent) -> None:
    host = agent.owner
    process = host.run("sleep", "60", stdin=True)
    sent = 0
    while host.window[process]:
        count = host.window[process]
        host.window[process] = 0
        host.send(STDIN, bytes(count), process)
        sent += count
        receive_for(host, 0.2)
    assert WINDOW < sent < 4 * WINDOW  # the pipe's own buffer and a window
    before = used_ticks(agent)
    receive_for(host, 0.5)
    assert used_ticks(agent) - before <= 2
    assert host.outcome(host.run("echo", "other"))[1] == b"other\n"


def test_stdin_that_is_closed_is_granted_on_so_that_a_host_can_get_rid_of_it(host: Host) -> None:
    process = host.run("sh", "-c", "exec <&-; sleep 0.5; echo done", stdin=True)
    host.feed(process, bytes(MIB))
    host.end_stdin(process)
    assert host.outcome(process)[1] == b"done\n"


def test_without_stdin_there_is_an_end_at_once(host: Host) -> None:
    assert host.outcome(host.run("cat")) == ({"status": 0}, b"", b"")


def test_stdin_that_crosses_the_end_is_ignored(host: Host) -> None:
    process = host.run("true", stdin=True)
    while (process, STDOUT) not in host.ended:
        host.receive()
    time.sleep(0.1)
    for _ in range(10):
        host.send(STDIN, bytes(WINDOW), process)
    host.grant(process, STDOUT, WINDOW)
    assert host.outcome(process)[0] == {"status": 0}


def test_a_terminal_is_one_stream_with_a_size_that_changes(host: Host) -> None:
    script = "stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done"
    process = host.run("sh", "-c", script, tty={"rows": 33, "columns": 101})
    while b"ready" not in host.output[process, STDOUT]:
        host.receive()
    assert host.call("resize", process=process, rows=50, columns=132) == {}
    end, out, err = host.outcome(process)
    assert (end, err) == ({"status": 3}, b"")
    assert out == b"33 101\r\nready\r\n50 132\r\n"
    assert (process, STDERR) not in host.ended


def test_a_terminal_controls_its_process(host: Host) -> None:
    process = host.run("cat", tty={"rows": 1, "columns": 1})
    host.feed(process, b"x\n")
    while host.output[process, STDOUT] != b"x\r\nx\r\n":  # its echo, and what cat writes
        host.receive()
    host.feed(process, b"\x03")
    assert host.outcome(process)[0] == {"signal": 2}


def test_the_end_of_input_of_a_terminal_is_ctrl_d_and_input_may_go_on(host: Host) -> None:
    process = host.run("sh", "-c", "cat; echo between; cat", tty={"rows": 24, "columns": 80})
    host.feed(process, b"one\n")
    host.end_stdin(process)
    while b"between" not in host.output[process, STDOUT]:
        host.receive()
    host.feed(process, b"two\n")
    host.end_stdin(process)
    end, out, _ = host.outcome(process)
    assert end == {"status": 0}
    assert out.replace(b"\r", b"") == b"one\none\nbetween\ntwo\ntwo\n"


def test_ends_of_input_without_number_do_a_terminal_no_harm(host: Host) -> None:
    process = host.run("sleep", "60", tty={"rows": 24, "columns": 80})
    for _ in range(20000):
        host.end_stdin(process)
    assert host.outcome(host.run("echo", "other"))[1] == b"other\n"
    host.call("signal", process=process, signal=9)
    assert host.outcome(process)[0] == {"signal": 9}


def test_resize_needs_a_terminal(host: Host) -> None:
    process = host.run("sleep", "60")
    with pytest.raises(RefusedError) as refused:
        host.call("resize", process=process, rows=1, columns=1)
    assert refused.value.errno == 25


def test_what_outlives_a_terminals_process_does_not_hold_its_end_up(host: Host) -> None:
    started = time.monotonic()
    script = "trap '' HUP; (while echo more; do :; done) & sleep 0.1; exit 5"
    process = host.run("sh", "-c", script, tty={"rows": 24, "columns": 80})
    assert host.outcome(process)[0] == {"status": 5}
    assert time.monotonic() - started < 20


def test_a_second_connection_has_processes_of_its_own(agent: Agent) -> None:
    own = agent.owner.run("sleep", "60")
    with agent.another() as second:
        assert second.event()["params"]["protocol"] == 2
        process = second.run("sh", "-c", "echo second; exit 4")
        assert process != own
        with pytest.raises(RefusedError) as refused:
            second.call("signal", process=own, signal=9)
        assert refused.value.errno == 3
        assert second.outcome(process) == ({"status": 4}, b"second\n", b"")
        with pytest.raises(RefusedError) as refused:
            second.call("shutdown")
        assert refused.value.errno == 1
        with agent.another() as third, pytest.raises((EOFError, ConnectionResetError)):
            third.event()
    agent.owner.ask("shutdown")
    assert agent.end() == SHUTDOWN


def test_when_another_connection_closes_its_processes_lose_their_streams(agent: Agent) -> None:
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
    with agent.another() as second:
        second.run("cat", stdin=True)
        second.run("yes")
        second.run("sh", tty={"rows": 24, "columns": 80})
        assert len(children.read_text().split()) == 3
    end = time.monotonic() + PATIENCE
    while children.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    with agent.another() as second:  # and the place is free again
        assert second.outcome(second.run("echo", "again"))[1] == b"again\n"
    assert agent.owner.outcome(agent.owner.run("echo", "owner"))[1] == b"owner\n"


def test_malformed_input_of_another_connection_ends_that_connection_alone(agent: Agent) -> None:
    with agent.another() as second:
        second.event()
        second.sock.sendall(struct.pack("<IBBH", 70000, 0, 0, 0))
        assert "70000 bytes" in second.event()["params"]["what"]
        with pytest.raises(EOFError):
            second.receive()
    assert agent.owner.outcome(agent.owner.run("echo", "owner"))[1] == b"owner\n"
    agent.owner.sock.sendall(struct.pack("<IBBH", 70000, 0, 0, 0))
    while "what" not in agent.owner.event()["params"]:
        pass
    agent.owner.sock.close()
    assert agent.end() == FAILED


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("run", {"argv": ["true"]}),
        ("exec", {"container": "a", "argv": ["true"]}),
        ("create", {"container": "a", "config": "{}"}),
        ("create", {"container": "a", "rootfs": {"type": "9p", "tag": "rootfs"}}),
        ("marker", {"seed": "0" * 16}),
    ],
)
def test_a_sealed_guest_refuses_what_its_image_does_not_say(
    sealed: Host, method: str, params: dict[str, object]
) -> None:
    with pytest.raises(RefusedError, match="sealed") as refused:
        sealed.call(method, **params)
    assert refused.value.errno == 1
    assert sealed.call("report")["sealed"] is True


@pytest.mark.parametrize("method", ["start", "stats", "delete", "exec"])
def test_what_is_asked_of_a_container_that_is_not_there_is_refused(host: Host, method: str) -> None:
    more = {"argv": ["true"]} if method == "exec" else {}
    with pytest.raises(RefusedError, match="none called a") as refused:
        host.call(method, container="a", **more)
    assert refused.value.errno == 3


def test_without_encryption_attest_says_that_it_is_missing(host: Host) -> None:
    if Path("/dev/sev-guest").exists():
        pytest.skip("this is an SEV-SNP guest")
    with pytest.raises(RefusedError, match="cannot attest") as refused:
        host.call("attest", data="ab" * 64)
    assert refused.value.errno == 19


def splitmix64(seed: int, count: int) -> bytes:
    mask = (1 << 64) - 1
    numbers = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        mixed = ((seed ^ seed >> 30) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & mask
        numbers.append(mixed ^ mixed >> 31)
    return struct.pack(f"<{count}Q", *numbers)


def writable_memory(pid: int) -> Iterator[bytes]:
    """The process's memory, without the sanitizer's tables, which are far larger."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, access = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if access.startswith("rw") and end - start < 16 * MIB:
                memory.seek(start)
                yield memory.read(end - start)


def test_the_marker_is_a_page_of_the_numbers_of_its_seed(agent: Agent) -> None:
    # splitmix64 by its published first numbers from seed 1234567
    assert splitmix64(1234567, 2) == struct.pack("<2Q", 6457827717110365317, 3203168211198807973)
    first, second = splitmix64(0xFEDCBA9876543210, 512), splitmix64(0, 512)
    assert agent.owner.call("marker", seed="fedcba9876543210") == {}
    assert any(first in memory for memory in writable_memory(agent.pid))
    assert agent.owner.call("marker", seed="0" * 16) == {}
    memory = list(writable_memory(agent.pid))
    assert any(second in part for part in memory)
    assert not any(first[:16] in part for part in memory)
