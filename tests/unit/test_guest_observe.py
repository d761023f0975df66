# SPDX-License-Identifier: Apache-2.0
"""What becomes of a boot is told by the CPU alone: with a script in QEMU's place that says so."""

from collections.abc import Callable
from pathlib import Path

import pytest
from guest_double import write_double
from test_firmware_loaded import LOADED

from sevkit.guest.machine import Machine
from sevkit.guest.observe import Monitor, Sight, observe

QMP = """\
monitor = socket.socket(fileno=int(fds["monitor"]))
lines = monitor.makefile("rw")

def tell(record):
    lines.write(json.dumps(record) + "\\n")
    lines.flush()

def serve(registers, memory=lambda line: ""):
    tell(dict(QMP=dict(version={})))
    for line in lines:
        request = json.loads(line)
        command = request["arguments"].get("command-line", "")
        tell(dict(event="A_RESUME"))
        tell({"return": registers() if command == "info registers" else memory(command) or {}})

def burn():
    end = time.process_time() + 0.06
    while time.process_time() < end:
        pass
"""

Watch = Callable[..., Sight]


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    """What is seen of a script whose last lines are given."""

    def run(body: str, *, limit: float = 15.0, sign: Callable[[], str] = lambda: "") -> Sight:
        script = write_double(tmp_path / "qemu", QMP + body)
        with Monitor() as monitor:
            machine = Machine(
                lambda _, console: [
                    *(str(script), "-chardev", f"socket,id=console,fd={console}"),
                    *monitor.arguments(),
                ],
                on_agent=lambda _: None,
                on_console=lambda _: None,
                inherited=[monitor.descriptor],
            )
            with machine:
                monitor.started()
                return observe(machine, monitor, LOADED, sign, soon=0, limit=limit)

    return run


def test_a_cpu_in_the_kernel_s_half_has_booted(watch: Watch) -> None:
    halted = watch('serve(lambda: "RIP=ffffffff81000000 RFL=00000246 HLT=1")', limit=2.0)
    assert halted.outcome == "unclear"
    seen = watch('serve(lambda: "RIP=ffffffff81000000 RFL=00000246 HLT=0")')
    assert seen == Sight("booted", "the CPU is in the kernel, at 0xffffffff81000000")


@pytest.mark.parametrize(
    ("registers", "outcome"),
    [
        ("RIP=000000000ee0e388 HLT=0", "unclear"),
        ("EIP=0000e388 HLT=0", "unclear"),
        ("RIP=000000000ee0e388 HLT=1", "unclear"),
    ],
)
def test_a_cpu_that_stands_in_no_known_module_shows_nothing(
    registers: str, outcome: str, watch: Watch
) -> None:
    halted = "HLT=1" in registers
    seen = watch(f"serve(lambda: burn() or {registers!r})", limit=4.0 if halted else 20.0)
    assert seen.outcome == outcome
    assert ("in no module" in seen.evidence) is not halted


def test_a_cpu_that_gets_no_time_is_not_taken_for_one_that_stands_still(watch: Watch) -> None:
    seen = watch('serve(lambda: "RIP=000000000ee0e388 HLT=0")', limit=4.0)
    assert seen == Sight("unclear", "after 4 s neither a system runs nor stands the CPU still")


def test_a_cpu_that_moves_stands_nowhere(watch: Watch) -> None:
    body = """
places = iter(range(0x100000, 0x7fffffff, 4096))
serve(lambda: burn() or f"RIP={next(places):016x} HLT=0")
"""
    assert "neither a system runs" in watch(body, limit=4.0).evidence


@pytest.mark.parametrize(
    "body",
    [
        "sys.exit(3)",
        'tell(dict(QMP={}))\nlines.readline()\nprint("no", file=sys.stderr)\nsys.exit(3)',
        'lines.write("nonsense")\nlines.flush()\nsys.exit(3)',
    ],
)
def test_a_qemu_that_ends_is_unclear_with_its_own_words(body: str, watch: Watch) -> None:
    seen = watch(body)
    assert seen.outcome == "unclear"
    assert "QEMU ended with status 3" in seen.evidence
    assert (": no" in seen.evidence) is ("print" in body)


def test_a_monitor_that_talks_nonsense_is_unclear(watch: Watch) -> None:
    seen = watch('serve(lambda: "no registers here")')
    assert seen.outcome == "unclear"
    assert "does not tell where the CPU is" in seen.evidence


def test_a_sign_of_the_system_is_enough(watch: Watch) -> None:
    assert watch("sleep(60)", sign=lambda: "it greets") == Sight("booted", "it greets")
