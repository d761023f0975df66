# SPDX-License-Identifier: Apache-2.0
"""What tests of several folders share: running the command, a network to ask, built images."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As shells start a job in the background. What tests start inherits it, and then can't be
    # interrupted as it would be on a terminal.
    signal.signal(signal.SIGINT, signal.default_int_handler)

Sevkit = Callable[..., subprocess.CompletedProcess[str]]


def run_sevkit(
    arguments: Sequence[str | Path],
    *,
    cwd: Path = REPOSITORY,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float = 2400,
) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, and keep what it said."""
    return subprocess.run(
        [sys.executable, "-m", "sevkit", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell what tests have counted with `record_property`, whole numbers, in all."""
    totals: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if isinstance(value, int) and getattr(report, "when", "") == "call":
                    totals[name] += value
    for name, total in totals.items():
        terminalreporter.write_line(f"{name}: {total}")


@pytest.fixture(scope="session")
def sevkit() -> Sevkit:
    """The command; also checks that it never shows a traceback."""

    def run(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        result = run_sevkit(arguments, **options)  # type: ignore[arg-type]
        assert "Traceback" not in result.stderr, result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def latin_1(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of a user whose locale has another encoding than UTF-8."""
    name, folder = "en_US.ISO-8859-1", tmp_path_factory.mktemp("locales")
    command = ["localedef", "-c", "-i", "en_US", "-f", "ISO-8859-1", str(folder / name)]
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no locale but UTF-8 ones can be made here: apt-get install locales")
    return {"LOCPATH": str(folder), "LC_ALL": name}


@pytest.fixture(scope="session")
def mirror() -> None:
    """Skips when no Debian mirror answers; says so."""
    answer = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"],
        capture_output=True,
        text=True,
        check=False,
    )
    addresses = {line.strip() for line in answer.stdout.splitlines() if line.strip()}
    if not addresses:
        pytest.skip("apt has no package lists here: nothing that needs Debian packages was tested")


@pytest.fixture(scope="session")
def build_image(
    sevkit: Sevkit, mirror: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Builds a recipe through the command, in the user's store, and gives its image directory."""
    output = tmp_path_factory.mktemp("output")
    made: dict[tuple[str, ...], Path] = {}

    def build(recipe: str | Path, *settings: str, project: Path = REPOSITORY) -> Path:
        key = (str(recipe), str(project), *settings)
        if key not in made:
            place = ["-C", project, "--output", output / str(len(made))]
            result = sevkit(*place, "build", recipe, *settings, "--ci")
            assert result.returncode == 0, result.stderr
            [latest] = (output / str(len(made))).glob("*/latest")
            made[key] = latest.resolve()
        return made[key]

    return build


@pytest.fixture(scope="session")
def unpatched(build_image: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default guest with the same fragments but for our symbol, and without our patches."""
    project = tmp_path_factory.mktemp("unpatched")
    for folder in ("recipes", "kernel-configs"):
        (project / folder).mkdir()
    text = (REPOSITORY / "kernel-configs" / "virtio-dma.config").read_text()
    without = text.replace("CONFIG_VIRTIO_FORCE_DMA_API=y\n", "CONFIG_VIRTIO=y\n")
    assert without != text
    (project / "kernel-configs" / "virtio-dma.config").write_text(without)
    recipe = 'schema = 1\nextends = "sev-guest"\nname = "unpatched"\nkernel.patches = ""\n'
    (project / "recipes" / "unpatched.toml").write_text(recipe)
    return build_image("unpatched", project=project)


@pytest.fixture(scope="session")
def sev_guest(build_image: Callable[..., Path], unpatched: Path) -> Path:
    """The image directory of the default recipe.

    Built after the one without our patches: its kernel goes on from that one's objects, never the
    other way round, so that two kernels cost little more than one.
    """
    return build_image("sev-guest")


@pytest.fixture(scope="session")
def busybox_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system that holds busybox and a few files to look at."""
    busybox = Path("/bin/busybox")
    assert busybox.exists(), "busybox-static is missing: make setup installs it"
    root = tmp_path_factory.mktemp("busybox-root")
    for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
        (root / name).mkdir()
    (root / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc" / "group").write_text("root:x:0:\n")
    return root
