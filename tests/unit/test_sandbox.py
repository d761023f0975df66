# SPDX-License-Identifier: Apache-2.0
"""What a build step sees and can do, and that nothing of it stays behind."""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from sevkit import sandbox
from sevkit.errors import BuildError
from sevkit.sandbox import (
    CancelledError,
    Processes,
    SandboxRunner,
    check_confinement,
    lines_that_matter,
)

BUILDER_ROOT = str(Path(__file__).resolve().parents[2] / "builder")
MakeRunner = Callable[..., SandboxRunner]


@pytest.fixture
def make_runner(tmp_path: Path) -> MakeRunner:
    for name in ("work", "input"):
        (tmp_path / name).mkdir()

    def make(
        confined: bool = True, processes: Processes | None = None, root: Path | None = None
    ) -> SandboxRunner:
        return SandboxRunner(
            title="step",
            work=tmp_path / "work",
            inputs={"in": tmp_path / "input"},
            log=tmp_path / "log",
            jobs=1,
            confined=confined,
            processes=processes or Processes(),
            on_progress=lambda done, total, note: None,
            root=root,
        )

    return make


def output_of(runner: SandboxRunner, script: str) -> list[str]:
    lines: list[str] = []
    runner(["sh", "-c", script], cwd=runner.work, on_line=lines.append)
    return lines


def test_this_host_can_confine_commands() -> None:
    check_confinement()


@pytest.mark.parametrize("confined", [True, False])
def test_output_goes_to_the_log_and_line_by_line_to_the_caller(
    make_runner: MakeRunner, tmp_path: Path, confined: bool
) -> None:
    lines: list[str] = []
    runner = make_runner(confined)
    runner(["sh", "-c", "echo one; echo two >&2"], cwd=runner.work, on_line=lines.append)
    assert lines == ["one", "two"]
    assert "one\ntwo\n[status 0]" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("confined", [True, False])
def test_the_environment_is_the_same_for_everybody(
    make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch, confined: bool
) -> None:
    monkeypatch.setenv("KBUILD_BUILD_USER", "me")
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    lines: list[str] = []
    runner = make_runner(confined)
    runner(["env"], cwd=runner.work, env={"EXTRA": "1"}, on_line=lines.append)
    names = {line.partition("=")[0] for line in lines} - {"PWD", "_", "SHLVL"}
    assert names == {"HOME", "LC_ALL", "PATH", "SOURCE_DATE_EPOCH", "TZ", "EXTRA"}


def test_inputs_are_read_only_and_what_was_not_declared_is_not_there(
    make_runner: MakeRunner, tmp_path: Path
) -> None:
    runner = make_runner()
    (tmp_path / "undeclared").write_text("secret")
    (tmp_path / "input" / "file").write_text("given")
    runner(["sh", "-c", f"cat {tmp_path}/input/file > copy"], cwd=runner.work)
    assert (tmp_path / "work" / "copy").read_text() == "given"
    with pytest.raises(BuildError, match="status"):
        runner(["cat", tmp_path / "undeclared"], cwd=runner.work)
    runner(["cat", tmp_path / "undeclared"], cwd=runner.work, reading=[tmp_path / "undeclared"])
    with pytest.raises(BuildError, match="status"):
        runner(["touch", tmp_path / "input" / "file"], cwd=runner.work)


def test_a_step_is_alone_on_a_machine_without_network_home_or_neighbours(
    make_runner: MakeRunner,
) -> None:
    runner = make_runner()
    interfaces = output_of(runner, "sed 1,2d /proc/net/dev")
    assert [line.partition(":")[0].strip() for line in interfaces] == ["lo"]
    assert output_of(runner, "hostname; id -u; id -g") == ["sevkit", "1000", "1000"]
    way_to_work = set(runner.work.parts)
    assert set(output_of(runner, "ls -A /tmp")) <= way_to_work
    for place in ("/var", "/home", "/root", "/sys", "/run", "/nonexistent"):
        assert set(output_of(runner, f"ls -A {place} 2>/dev/null || true")) <= way_to_work
    assert set(output_of(runner, "ls -A /")) <= {
        *("bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "tmp", "usr"),
        runner.work.parts[1],
    }
    assert set(output_of(runner, "ls -A /etc")) <= {
        *("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d")
    }
    pids = output_of(runner, "ls -d /proc/[0-9]*")
    assert len(pids) <= 4, pids
    runner(["sh", "-c", "echo kept > /tmp/file"], cwd=runner.work)
    assert not output_of(runner, "ls -A /tmp | grep file || true")


def test_a_step_can_write_to_its_work_folder_only(make_runner: MakeRunner, tmp_path: Path) -> None:
    runner = make_runner()
    places = ["/usr", "/bin/sh", "/etc/ld.so.conf.d", "/proc/sys/kernel", str(tmp_path / "input")]
    for place in [*places, "/", "/etc", "/dev", "/dev/pts"]:
        script = f"test -d {place} && touch {place}/new || echo >> {place}"
        with pytest.raises(BuildError):
            runner(["sh", "-c", script], cwd=runner.work)
    for made in ("/etc/passwd", "/var/x", "/nonexistent/x", "/run/x", "/home/x"):
        with pytest.raises(BuildError):
            runner(["sh", "-c", f"mkdir -p $(dirname {made}); touch {made}"], cwd=runner.work)
    runner(["touch", "made"], cwd=runner.work)
    assert (tmp_path / "work" / "made").exists()
    runner(["sh", "-c", f"mkdir -p {tmp_path}/out; touch {tmp_path}/out/made"], cwd=runner.work)
    assert not (tmp_path / "out").exists()


def test_memory_that_processes_share_works_and_ends_with_the_step(make_runner: MakeRunner) -> None:
    """Python's process pools lock with POSIX semaphores, which are files of /dev/shm."""
    runner = make_runner()
    script = "import multiprocessing; multiprocessing.Lock(); open('/dev/shm/left', 'w')"
    runner(["python3", "-c", script], cwd=runner.work)
    assert output_of(runner, "ls -A /dev/shm") == []


@pytest.mark.parametrize("confined", [True, False])
def test_the_user_s_umask_reaches_no_step(make_runner: MakeRunner, confined: bool) -> None:
    before = os.umask(0o077)
    try:
        assert output_of(make_runner(confined), "umask") == ["0022"]
    finally:
        os.umask(before)


@pytest.mark.parametrize("confined", [True, False])
def test_a_cancelled_step_dies_with_all_its_children(
    make_runner: MakeRunner, confined: bool
) -> None:
    marker = f"30{secrets.randbelow(10**6)}"
    processes = Processes()
    runner = make_runner(confined, processes)
    raised: list[BaseException] = []

    def step() -> None:
        script = f"sleep {marker} & setsid sleep {marker} & nohup sleep {marker} & sleep {marker}"
        try:
            runner(["sh", "-c", script], cwd=runner.work)
        except CancelledError as error:
            raised.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    _wait_for(lambda: len(_running(marker)) == 4)
    processes.cancel()
    thread.join(10)
    assert raised
    _wait_for(lambda: not _running(marker))


@pytest.mark.parametrize("confined", [True, False])
@pytest.mark.parametrize("output", [">/dev/null 2>&1 </dev/null", ""])
def test_nothing_that_a_step_left_behind_works_on_after_it(
    make_runner: MakeRunner, confined: bool, output: str
) -> None:
    """What lies in the work folder then stays as it is looked at (`sevkit.within`)."""
    runner = make_runner(confined)
    late = f"setsid sh -c 'until test -e go; do sleep 0.05; done; touch late' {output}"
    runner(["sh", "-c", f"{late} & sleep 0.1"], cwd=runner.work)
    (runner.work / "go").touch()
    time.sleep(0.3)
    assert not (runner.work / "late").exists()
    script = f"{late} & until test -e late; do sleep 0.05; done"
    runner(["sh", "-c", script], cwd=runner.work)
    assert (runner.work / "late").exists()


@pytest.mark.parametrize("confined", [True, False])
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGHUP])
def test_a_step_dies_with_sevkit_and_all_its_children_do(
    tmp_path: Path, confined: bool, blow: signal.Signals
) -> None:
    marker = f"31{secrets.randbelow(10**6)}"
    (tmp_path / "work").mkdir()
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {BUILDER_ROOT!r})
from sevkit.sandbox import Processes, SandboxRunner
run = SandboxRunner(
    title="step", work=Path("work").absolute(), inputs={{}}, log=Path("log"), jobs=1,
    confined={confined}, processes=Processes(), on_progress=lambda done, total, note: None,
)
run(["sh", "-c", "setsid sleep {marker} & sleep {marker} & sleep {marker}"], cwd=run.work)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    _wait_for(lambda: len(_running(marker)) == 3)
    process.send_signal(blow)
    assert process.wait() == -blow
    _wait_for(lambda: not _running(marker))


def test_a_step_that_kills_its_process_group_kills_no_other(make_runner: MakeRunner) -> None:
    for confined in (True, False):
        with pytest.raises(BuildError, match=r"SIGTERM|status 143"):
            make_runner(confined)(["sh", "-c", "kill 0; sleep 60"], cwd=Path("/usr"))


def _running(marker: str) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place.read_bytes() == f"sleep\0{marker}\0".encode():
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_root_file_system_takes_the_place_of_the_hosts(
    make_runner: MakeRunner, tmp_path: Path
) -> None:
    """One that holds busybox alone: the host's compiler is gone, and so is its shell."""
    busybox = Path("/bin/busybox")
    assert busybox.exists(), "busybox-static is missing: make setup installs it"
    root = tmp_path / "root"
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "usr" / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (root / "usr" / "bin" / "busybox").chmod(0o755)
    (root / "usr" / "bin" / "sh").symlink_to("busybox")
    (root / "bin").symlink_to("usr/bin")
    inside, outside = make_runner(root=root), make_runner()
    assert output_of(outside, "command -v perl") == ["/usr/bin/perl"]
    assert output_of(inside, "command -v perl || busybox ls /usr/bin") == ["busybox", "sh"]


def test_where_user_namespaces_are_forbidden_the_error_says_what_to_do(tmp_path: Path) -> None:
    """A user namespace that allows no other inside stands for a container without them."""
    script = "echo 0 > /proc/sys/user/max_user_namespaces; exec python3 -c 'import bwrap_trial'"
    (tmp_path / "bwrap_trial.py").write_text(
        "import sys; from sevkit.errors import HostError\n"
        "from sevkit.sandbox import check_confinement\n"
        "try: check_confinement()\n"
        "except HostError as error: print(error); sys.exit(error.exit_code)\n"
    )
    command = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for prefix, status in ((script, 3), (script.partition("; ")[2], 0)):
        done = subprocess.run(
            [*command, prefix], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
    assert (
        "--sandbox=none"
        in subprocess.run(
            [*command, script], env=environment, capture_output=True, text=True, check=False
        ).stdout
    )


def test_a_failure_can_be_pasted_into_a_shell(make_runner: MakeRunner) -> None:
    runner = make_runner()
    with pytest.raises(BuildError) as caught:
        runner(["sh", "-c", "echo 'a b'; exit 9"], cwd=runner.work, env={"A": "x y"})
    first = caught.value.why.splitlines()[0]
    assert first == f"$ cd {runner.work} && A='x y' sh -c 'echo '\"'\"'a b'\"'\"'; exit 9'"
    assert "status 9" in caught.value.what


def test_a_command_that_was_killed_is_told_by_its_signal(make_runner: MakeRunner) -> None:
    runner = make_runner(confined=False)
    with pytest.raises(BuildError, match="SIGKILL"):
        runner(["sh", "-c", "kill -9 $$"], cwd=runner.work)


@pytest.mark.parametrize("confined", [True, False])
def test_a_command_that_does_not_exist_is_an_error_not_a_traceback(
    make_runner: MakeRunner, confined: bool
) -> None:
    runner = make_runner(confined)
    with pytest.raises(BuildError, match="no-such-command") as caught:
        runner(["no-such-command"], cwd=runner.work)
    assert "No such file or directory" in caught.value.why


@pytest.mark.parametrize("confined", [True, False])
def test_a_long_line_is_several_and_is_kept_in_the_log_alone(
    make_runner: MakeRunner, tmp_path: Path, confined: bool
) -> None:
    runner = make_runner(confined)
    lengths: list[int] = []
    script = "head -c 40M /dev/zero | tr '\\0' x; echo; echo end; exit 3"
    tracemalloc.start()
    try:
        with pytest.raises(BuildError, match="status 3") as caught:
            runner(
                ["sh", "-c", script],
                cwd=runner.work,
                on_line=lambda line: lengths.append(len(line)),
            )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert sum(lengths) == (40 << 20) + len("end")
    assert max(lengths) == 1 << 16
    assert len(str(caught.value)) < 16 << 10
    assert caught.value.why.endswith("end")
    assert (tmp_path / "log").stat().st_size > 40 << 20


@pytest.mark.parametrize("confined", [True, False])
def test_a_step_that_talks_without_end_is_ended(
    make_runner: MakeRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confined: bool
) -> None:
    monkeypatch.setattr(sandbox, "_LOG_BYTES", 1 << 20)
    runner = make_runner(confined)
    marker = f"32{secrets.randbelow(10**6)}"
    yes = f"yes {'y' * 99}"
    for script in (yes, f"{yes} | tr -d '\\n'"):
        with pytest.raises(BuildError, match=r"^step: sh says more than 1 MiB") as caught:
            runner(["sh", "-c", f"sleep {marker} & {script}"], cwd=runner.work)
        assert caught.value.log == tmp_path / "log"
        assert "y" in caught.value.why.splitlines()[-1]
        assert (tmp_path / "log").stat().st_size < 2 << 20
        assert not _running(marker)
        (tmp_path / "log").unlink()
    assert len(output_of(runner, f"{yes} | head -n 6000")) == 6000
    with pytest.raises(BuildError, match="more than 1 MiB"):
        output_of(runner, f"{yes} | head -n 6000")


def test_the_lines_that_matter_are_the_errors_not_the_noise_after_them() -> None:
    lines = [
        "  CC      mm/slub.o",
        "mm/slub.c:12:1: error: unknown type name 'foo'",
        *[f"  CC      fs/{n}.o" for n in range(50)],
        "make[1]: *** [scripts/Makefile.build:243: mm/slub.o] Error 1",
        "make: *** [Makefile:2000: mm] Error 2",
    ]
    assert lines_that_matter(lines) == [lines[1]]
    assert lines_that_matter(["one", "two", ""]) == ["one", "two"]


@pytest.mark.parametrize(
    ("makefile", "said"),
    [
        ("all: x.o\n", "make[1]: *** No rule to make target 'x.o', needed by 'all'.  Stop."),
        ("all:\n    no tab\n", "Makefile:2: *** missing separator.  Stop."),
        ("$(error no $@)\n", "Makefile:1: *** no .  Stop."),
        ("all:\n\tkill -9 $$$$\n", "make[1]: *** [Makefile:2: all] Killed"),
        ("all:\n\t@echo 'x.c:1: error: y'; exit 3\n", "x.c:1: error: y"),
        ("all:\n\t@exit 3\n", "make[1]: *** [Makefile:2: all] Error 3"),
    ],
)
def test_what_make_itself_complains_of_is_told(
    makefile: str, said: str, make_runner: MakeRunner, tmp_path: Path
) -> None:
    inner, outer = tmp_path / "work" / "inner", tmp_path / "work" / "Makefile"
    inner.mkdir()
    (inner / "Makefile").write_text(makefile)
    outer.write_text("all:\n\t@echo this may be left out\n\t@$(MAKE) -C inner\n")
    with pytest.raises(BuildError) as caught:
        make_runner()(["make"], cwd=tmp_path / "work")
    told = caught.value.why.splitlines()[1:]
    assert any(line.startswith(said) for line in told), told
