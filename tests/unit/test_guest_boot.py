# SPDX-License-Identifier: Apache-2.0
"""Booting against guests that misbehave.

In QEMU's place runs a script that holds the same sockets and says what a hostile or dying guest
would say; tests/guest has the same with real ones.
"""

import fcntl
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from guest_double import write_double

from sevkit.errors import HostError, ImageError, RecipeError
from sevkit.guest.boot import Outcome, Setting, boot, limits_for, watch, writer
from sevkit.guest.console import LOG_BYTES, Console
from sevkit.guest.launch import Launch, Qemu
from sevkit.guest.qemu import GuestSpec
from sevkit.guest.running import Limits

LIMITS = Limits(hello=10, answer=10, power_off=10, panic=0.2)
SPEC = GuestSpec(kernel=Path("/vmlinuz"), cmdline="console=ttyS0")


@dataclass
class Bench:
    """Boots scripts as guests, and keeps what came out."""

    folder: Path
    stdout: io.BytesIO = field(default_factory=io.BytesIO)
    stderr: io.BytesIO = field(default_factory=io.BytesIO)

    def setting(self, body: str, limits: Limits = LIMITS, **more: Any) -> Setting:
        script = write_double(self.folder / "qemu", body)
        log = self.folder / "log" / "console.log"
        return Setting(Qemu(script, (9, 1, 0)), Launch("tcg"), limits, log=log, **more)

    def boot(
        self,
        body: str,
        limits: Limits = LIMITS,
        *,
        argv: tuple[str, ...] = ("id",),
        stdin: int | None = None,
        rootfs: Path | None = None,
    ) -> Outcome:
        return boot(
            SPEC,
            self.setting(body, limits, rootfs=rootfs),
            command=argv,
            stdout=self.stdout.write,
            stderr=self.stderr.write,
            stdin=stdin,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


GOOD = """
greet()
request = runs()
frame(2, " ".join(request["argv"]).encode(), 1)
frame(3, b"\\x1b[31m\\xff", 1)
end()
"""


def test_output_and_status_of_the_command_come_back_untouched(bench: Bench) -> None:
    outcome = bench.boot(GOOD, argv=("sh", "-c", "exit 7"))
    assert outcome.exit_status == 7
    assert bench.stdout.getvalue() == b"sh -c exit 7"
    assert bench.stderr.getvalue() == b"\x1b[31m\xff"
    assert [report["kernel"] for report in outcome.reports] == ["6.12", "6.12"]
    assert 0 < outcome.seconds_to_report <= outcome.seconds < 10


def test_without_a_command_there_is_one_report(bench: Bench) -> None:
    outcome = bench.boot("greet(); hear()", argv=())
    assert outcome.exit_status == 0
    assert len(outcome.reports) == 1


def test_the_request_names_the_shared_root_and_whether_there_is_input(bench: Bench) -> None:
    body = "greet(); frame(2, json.dumps(runs()).encode(), 1); end()"
    bench.boot(body, rootfs=bench.folder)
    assert (
        b'"stdin": false, "tty": null, "rootfs": {"type": "9p", "tag": "rootfs"}'
        in bench.stdout.getvalue()
    )
    bench.boot(body, stdin=os.open(os.devnull, os.O_RDONLY))
    assert b'"stdin": true, "tty": null, "rootfs": null' in bench.stdout.getvalue()


def test_input_from_a_file_arrives_whole_and_ends(bench: Bench) -> None:
    data = os.urandom(3_000_000)
    (bench.folder / "data").write_bytes(data)
    body = """
    greet(); runs()
    pending, room, more = b"", 32768, True
    while more or pending:
        heard = hear() if more or not room else (2, 0)
        if isinstance(heard, tuple):
            room += heard[1]
        else:
            pending, more = pending + heard, bool(heard)
            if more:
                frame(4, struct.pack("<II", 1, len(heard)), 1)
        piece, pending = pending[:room], pending[room:]
        if piece:
            frame(2, piece, 1)
            room -= len(piece)
    end()
    """
    with (bench.folder / "data").open("rb") as file:
        bench.boot(body, stdin=file.fileno())
    assert bench.stdout.getvalue() == data


def test_input_is_not_read_ahead_of_a_guest_that_does_not_take_it(bench: Bench) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    given = 0

    def pour() -> None:
        nonlocal given
        while not done.wait(0.01):
            try:
                given += os.write(theirs, bytes(65536))
            except BlockingIOError:
                continue

    done = threading.Event()
    writer = threading.Thread(target=pour)
    writer.start()
    try:
        bench.boot(
            "greet(); runs(); sleep(1); answer(waits.pop(), status=0);"
            "reports(); agent.shutdown(0); sleep(0.1)",
            stdin=ours,
        )
    finally:
        done.set()
        writer.join()
    assert 0 < given < 3_000_000


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("frame(7, b'')", "broke the agent's protocol: a frame of the unknown type 7"),
        ("frame(2, b'x', 1)", "output of process 1, which does not run"),
        ("agent.sendall(b'\\xff' * 8)", "a frame of 4294967295 bytes"),
        ("hello(); say(id=7, result={})", "an answer to no request"),
        ("greet(); hello()", "the event 'hello', out of order"),
        ("greet(); runs(); frame(2, bytes(40000), 1)", "more output of process 1 than was granted"),
        ("greet(); runs(); say(event='malformed', params=dict(what='\\x1b['))", "\\x1b["),
    ],
)
def test_a_guest_that_breaks_the_protocol_is_ended(bench: Bench, body: str, what: str) -> None:
    with pytest.raises(ImageError) as caught:
        bench.boot(f"{body}\nsleep(60)")
    assert what in caught.value.what
    bench.boot(GOOD)


@pytest.mark.parametrize(
    ("body", "limits", "what"),
    [
        ("sleep(60)", Limits(0.5, 9, 9), "failed to give its greeting within 0.5 s"),
        (
            "hello(); sleep(60)",
            Limits(9, 0.5, 9),
            "failed to give its report within 0.5 s",
        ),
        ("greet(); runs(); sleep(60)", Limits(9, 9, 9, 0.5), "the command's end within 0.5 s"),
        (
            "greet(); runs(); answer(waits.pop(), status=0); sleep(60)",
            Limits(9, 0.5, 9),
            "failed to give its report within 0.5 s",
        ),
        ("greet(); runs(); end(); sleep(60)", Limits(9, 9, 0.5), "failed to power off within 0.5"),
    ],
)
def test_a_guest_that_falls_silent_is_an_error(
    bench: Bench, body: str, limits: Limits, what: str
) -> None:
    with pytest.raises(ImageError) as caught:
        bench.boot(f"console.sendall(b'last words\\r\\n')\n{body}", limits)
    assert what in caught.value.what
    assert caught.value.why == "the end of its console:\n  last words"
    assert caught.value.log is not None
    assert caught.value.log.read_bytes() == b"last words\r\n"


def test_a_guest_that_talks_without_end_gets_no_more_time_and_no_more_room(bench: Bench) -> None:
    body = """
    import threading
    def chatter():
        while True:
            console.sendall(b"x" * 60000 + b"\\n")
    threading.Thread(target=chatter, daemon=True).start()
    hello()
    agent.sendall(struct.pack("<IBBH", 65536, 0, 0, 0))
    for _ in range(60000):
        agent.sendall(b"\\x00")
        sleep(0.001)
    """
    started = time.monotonic()
    with pytest.raises(ImageError, match="failed to give its report") as caught:
        bench.boot(body, Limits(9, 1, 9))
    assert time.monotonic() - started < 8
    assert len(caught.value.why) < 20 * 200
    assert caught.value.log is not None
    assert caught.value.log.stat().st_size <= LOG_BYTES


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("", "powered off when it owed its greeting"),
        ("greet()", "powered off when it owed the command's start"),
        ("greet(); runs()", "powered off when it owed the command's end"),
        ("greet(); runs(); answer(waits.pop(), status=0)", "when it owed its report"),
        ("os.kill(os.getpid(), 11)", "QEMU was ended by signal 11"),
        ("console.sendall(b'up\\n'); sys.exit(3)", "QEMU failed with status 3"),
    ],
)
def test_a_guest_that_goes_early_is_an_error(bench: Bench, body: str, what: str) -> None:
    with pytest.raises(ImageError) as caught:
        bench.boot(body)
    assert what in caught.value.what


def test_output_that_came_before_the_guest_went_is_not_lost(bench: Bench) -> None:
    with pytest.raises(ImageError):
        bench.boot("greet(); runs(); frame(2, b'almost', 1)")
    assert bench.stdout.getvalue() == b"almost"


def test_a_kernel_that_panics_and_stays_is_not_waited_for(bench: Bench) -> None:
    body = "greet(); runs(); console.sendall(b'[ 1.2] Kernel panic - not syncing: BUG\\r\\nx\\n')"
    started = time.monotonic()
    with pytest.raises(ImageError, match="kernel panicked") as caught:
        bench.boot(f"{body}; sleep(60)")
    assert time.monotonic() - started < 8
    assert caught.value.why.startswith("Kernel panic - not syncing: BUG\n")


def test_a_qemu_that_refuses_its_arguments_is_the_hosts_fault(bench: Bench) -> None:
    with pytest.raises(HostError, match="does not start") as caught:
        bench.boot("sys.exit('qemu: no such\\x1b[2J device')")
    assert caught.value.why == "qemu: qemu: no such device"


def test_what_the_console_says_is_made_fit_to_show(bench: Bench) -> None:
    body = "console.sendall(b'\\x1b[1;31mred\\x1b[0m \\x1b]0;title\\x07 \\xff \\xe2\\x80\\xae\\n')"
    with pytest.raises(ImageError) as caught:
        bench.boot(body)
    assert caught.value.why.endswith("  red \\x1b]0;title\\x07 \ufffd \\u202e")


def test_output_that_can_not_be_written_ends_the_guest(bench: Bench) -> None:
    setting = bench.setting(GOOD)
    command = ["id"]
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        with pytest.raises(HostError, match="can't be written") as caught:
            boot(
                SPEC,
                setting,
                command=command,
                stdout=writer(full.fileno()),
                stderr=bench.stderr.write,
            )
        assert "No space left" in caught.value.why
    ours, theirs = os.pipe()
    os.close(ours)
    with pytest.raises(BrokenPipeError):
        boot(SPEC, setting, command=command, stdout=writer(theirs), stderr=bench.stderr.write)
    os.close(theirs)


POURS = """
greet(); runs()
room = 32768
for _ in range(128):
    while room < 8192:
        room += hear()[1]
    frame(2, bytes(range(256)) * 32, 1)
    room -= 8192
end()
"""


@pytest.mark.parametrize("blocks", [True, False])
def test_a_reader_that_is_slow_gets_every_byte(bench: Bench, blocks: bool) -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, blocks)
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    arrived = bytearray()

    def read_slowly() -> None:
        while data := os.read(ours, 5000):
            arrived.extend(data)
            time.sleep(0.0005)

    reader = threading.Thread(target=read_slowly)
    reader.start()
    setting = bench.setting(POURS)
    try:
        boot(SPEC, setting, command=["id"], stdout=writer(theirs), stderr=bench.stderr.write)
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    assert arrived == bytes(range(256)) * 4096


def test_output_to_what_is_closed_is_refused_before_a_guest_could_take_its_place() -> None:
    ours, theirs = os.pipe()
    writer(theirs)(b"good")
    assert os.read(ours, 9) == b"good"
    os.close(ours)
    os.close(theirs)
    with pytest.raises(HostError, match="can't be written"):
        writer(theirs)


def test_input_that_can_not_be_read_is_empty(bench: Bench) -> None:
    folder = os.open(bench.folder, os.O_RDONLY)
    body = "greet(); runs(); frame(2, b'got %d' % len(hear()), 1); end()"
    bench.boot(body, stdin=folder)
    os.close(folder)
    assert bench.stdout.getvalue() == b"got 0"


def test_a_root_that_is_no_folder_is_refused_before_anything_starts(bench: Bench) -> None:
    with pytest.raises(RecipeError, match="is not a folder"):
        bench.boot(GOOD, rootfs=bench.folder / "nothing")
    assert not (bench.folder / "log").exists()


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_qemu_outlives_sevkit(bench: Bench, number: signal.Signals) -> None:
    setting = bench.setting("greet(); runs(); frame(2, str(os.getpid()).encode(), 1); sleep(60)")
    code = (
        "import sys; from pathlib import Path; from sevkit.guest.boot import *;"
        "from sevkit.guest.running import Limits; from sevkit.guest.launch import *;"
        "from sevkit.guest.qemu import GuestSpec\n"
        "boot(GuestSpec(Path('/k'), 'x'), Setting(Qemu(Path(sys.argv[1]), (9, 1, 0)),"
        "Launch('tcg'), Limits(9, 9, 9)), command=['id'], stdout=writer(1),"
        "stderr=writer(2))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, setting.qemu.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        pid = int(os.read(process.stdout.fileno(), 100))
        assert alive(pid)
        process.send_signal(number)
        process.wait(20)
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_way_out_ends_qemu(bench: Bench) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    setting = bench.setting("greet(); sleep(60)")
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(KeyboardInterrupt):
        boot(
            SPEC,
            setting,
            command=[],
            stdout=bench.stdout.write,
            stderr=bench.stderr.write,
            on_report=stop,
        )
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def watching(bench: Bench, body: str, **options: Any) -> Callable[[], float]:
    return lambda: watch(SPEC, bench.setting(body), stdout=bench.stdout.write, **options)


def test_a_foreign_guest_is_watched_until_it_powers_off(bench: Bench) -> None:
    watching(bench, "console.sendall(b'hello\\n'); assert agent is None")()
    assert bench.stdout.getvalue() == b"hello\n"


def test_a_foreign_guest_is_watched_until_it_says_the_word(bench: Bench) -> None:
    started = time.monotonic()
    talk = "console.sendall(b'/ # rea'); sleep(0.1); console.sendall(b'dy'); sleep(60)"
    watching(bench, talk, until="ready")()
    assert time.monotonic() - started < 8
    with pytest.raises(ImageError, match="failed to print 'never'"):
        watching(bench, talk, until="never", limit=0.5)()
    with pytest.raises(ImageError, match="powered off without printing 'never'"):
        watching(bench, "console.sendall(b'hello')", until="never")()


@pytest.mark.parametrize("limit", [1e300, float("inf")])
def test_a_limit_may_be_as_long_as_one_likes(bench: Bench, limit: float) -> None:
    watching(bench, "console.sendall(b'hello\\n')", limit=limit)()
    with pytest.raises(RecipeError, match="must be above 0"):
        watching(bench, "", limit=float("nan"))()


def test_emulation_gets_more_time_than_kvm_and_sev_more_for_more_memory() -> None:
    kvm = limits_for(Launch("kvm"), SPEC).hello
    assert limits_for(Launch("tcg"), SPEC).hello > kvm
    large = GuestSpec(Path("/k"), "x", memory_mib=65536)
    assert limits_for(Launch("sev-snp"), large).hello >= kvm + 60


def test_the_console_is_bounded_in_memory_and_on_disk(tmp_path: Path) -> None:
    with Console(tmp_path / "log") as console:
        for _ in range(1200):
            console.feed(b"y" * 16384)
        console.feed(b"\nthe end\n")
    lines = list(console.end())
    assert lines[-1] == "the end"
    assert len(lines[0]) == 160
    assert (tmp_path / "log").stat().st_size == LOG_BYTES
