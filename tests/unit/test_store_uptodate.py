# SPDX-License-Identifier: Apache-2.0
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sevkit.store import uptodate

LONG_AGO = time.time_ns() - 3600 * 10**9


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEVKIT_STORE", str(tmp_path / "store"))
    (tmp_path / "recipe").write_text("one")
    time.sleep(0.05)
    return tmp_path


def remember(place: Path, arguments: list[str], read_since_ns: int) -> None:
    uptodate.remember(
        arguments,
        answer="nothing to do",
        inputs=[str(place / "recipe"), str(place / "not-there")],
        results=[str(place / "result")],
        read_since_ns=read_since_ns,
    )


@pytest.fixture
def remembered(inputs: Path) -> Path:
    remember(inputs, ["build", "x"], time.time_ns())
    assert uptodate.known_answer(["build", "x"]) == "nothing to do"
    return inputs


def test_another_command_line_has_no_answer(remembered: Path) -> None:
    assert uptodate.known_answer(["build", "y"]) is None
    assert uptodate.known_answer(["build", "x", "kernel_series=6.1"]) is None


def test_another_folder_has_no_answer(remembered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(remembered)
    assert uptodate.known_answer(["build", "x"]) is None


@pytest.mark.parametrize("change", ["edit", "touch", "remove", "appear", "result", "chmod"])
def test_any_change_makes_the_answer_void(remembered: Path, change: str) -> None:
    match change:
        case "edit":
            (remembered / "recipe").write_text("two")
        case "touch":
            os.utime(remembered / "recipe")
        case "remove":
            (remembered / "recipe").unlink()
        case "appear":
            (remembered / "not-there").write_text("")
        case "result":
            (remembered / "result").write_text("")
        case "chmod":
            (remembered / "recipe").chmod(0o700)
    assert uptodate.known_answer(["build", "x"]) is None


def test_an_input_that_changed_while_it_was_read_is_not_trusted(inputs: Path) -> None:
    remember(inputs, ["build", "x"], LONG_AGO)
    assert uptodate.known_answer(["build", "x"]) is None


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"schema": 1}', '{"schema": 1, "files": 3}'])
def test_a_damaged_record_counts_as_none(remembered: Path, garbage: str) -> None:
    [record] = (remembered / "store" / "uptodate").iterdir()
    record.write_text(garbage)
    assert uptodate.known_answer(["build", "x"]) is None


def test_another_sevkit_has_no_answer(remembered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uptodate, "__version__", "99")
    assert uptodate.known_answer(["build", "x"]) is None
    monkeypatch.undo()
    monkeypatch.setenv("SEVKIT_STORE", str(remembered / "store"))
    assert uptodate.known_answer(["build", "x"]) == "nothing to do"


def test_a_module_of_sevkit_that_changed_makes_the_answer_void(remembered: Path) -> None:
    """A copy of the package, so that it can be changed, remembers and is asked."""
    package = Path(uptodate.__file__).parents[1]
    shutil.copytree(package, remembered / "sevkit", ignore=shutil.ignore_patterns("__pycache__"))
    time.sleep(0.05)
    ask = "print(uptodate.known_answer(['build', 'x']))"
    keep = (
        "uptodate.remember(['build', 'x'], answer='idle', inputs=[], results=[], "
        "read_since_ns=time.time_ns())"
    )

    def run(code: str) -> str:
        argv = [sys.executable, "-c", f"import time\nfrom sevkit.store import uptodate\n{code}"]
        environment = {**os.environ, "PYTHONPATH": str(remembered)}
        return subprocess.check_output(argv, env=environment, cwd=remembered, text=True).strip()

    run(keep)
    assert run(ask) == "idle"
    for name in ("plan.py", "stages/kernel.py"):
        with (remembered / "sevkit" / name).open("a") as module:
            module.write("# other\n")
        assert run(ask) == "None"
        time.sleep(0.05)
        run(keep)
        assert run(ask) == "idle"
