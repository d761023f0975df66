# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from pathlib import Path

import pytest

from sevkit.errors import BuildError, HostError
from sevkit.sandbox import Processes, SandboxRunner, check_confinement, lines_that_matter

MakeRunner = Callable[..., SandboxRunner]


@pytest.fixture
def make_runner(tmp_path: Path) -> MakeRunner:
    for name in ("work", "out", "input"):
        (tmp_path / name).mkdir()

    def make(confined: bool = True) -> SandboxRunner:
        return SandboxRunner(
            title="step",
            work=tmp_path / "work",
            out=tmp_path / "out",
            inputs={"in": tmp_path / "input"},
            log=tmp_path / "log",
            jobs=1,
            confined=confined,
            processes=Processes(),
            on_progress=lambda done, total, note: None,
        )

    return make


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
    script = f"cat {tmp_path}/input/file > {tmp_path}/out/copy"
    runner(["sh", "-c", script], cwd=runner.work)
    assert (tmp_path / "out" / "copy").read_text() == "given"
    with pytest.raises(BuildError, match="status"):
        runner(["cat", tmp_path / "undeclared"], cwd=runner.work)
    runner(["cat", tmp_path / "undeclared"], cwd=runner.work, reading=[tmp_path / "undeclared"])
    with pytest.raises(BuildError, match="status"):
        runner(["touch", tmp_path / "input" / "file"], cwd=runner.work)


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


def test_a_command_that_does_not_exist_is_an_error_not_a_traceback(
    make_runner: MakeRunner,
) -> None:
    runner = make_runner(confined=False)
    with pytest.raises(HostError, match="no-such-command"):
        runner(["no-such-command"], cwd=runner.work)


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
