# SPDX-License-Identifier: Apache-2.0
"""The one place that runs the commands of a build step, shut off from everything undeclared.

A command sees /usr and a few files of /etc read-only (the host's, or those of a root file system
that takes its place), the inputs of its stage, and its own work folder, the only one that it can
write to; no network, no home, no environment but a fixed one. bubblewrap does the shutting off
(bwrap(1)); without it commands run in the same environment but unconfined, and only when the user
asked for that. Either way nothing that a command started outlives it, or sevkit.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sevkit.errors import INTERRUPTED, BuildError, HostError, SevkitError
from sevkit.supervisor import supervised
from sevkit.terminal import run_apart

ENVIRONMENT: Mapping[str, str] = {
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "SOURCE_DATE_EPOCH": "0",
    "TZ": "UTC",
}
"""What every command of every build step sees, whoever runs sevkit, and where."""
_UMASK = 0o022

_SHUT_OFF = (
    *("--unshare-all", "--unshare-user", "--die-with-parent", "--hostname", "sevkit"),
    *("--uid", "1000", "--gid", "1000"),
)
_HOST_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_HOST_FILES = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d")
_HIDDEN = "usr/lib/gcc/*/*/plugin/include"
"""What a package of its own adds beside a compiler, whose version says nothing of it: the kernel's
configuration has other symbols where it is."""
_USER_NAMESPACE_HELP = (
    "allow user namespaces (on Ubuntu an AppArmor profile for bwrap, or sysctl "
    "kernel.apparmor_restrict_unprivileged_userns=0; elsewhere sysctl "
    "kernel.unprivileged_userns_clone=1), or build with --sandbox=none"
)
_TELLING = re.compile(
    r"(\berror\b|\bfatal\b|undefined reference|No such file|No space left|cannot |FAILED"
    r"|: \*\*\* )",
    re.I,
)
_AFTERWARDS = re.compile(r"^make(\[\d+\])?: \*\*\* (\[.*\] Error \d+|Waiting for |Deleting )")
"""What make(1) says after what failed; other lines with `***` are its own complaints."""
_LINE_BYTES = 64 << 10
_LAST_LINES = 200
_LAST_CHARACTERS = 1000
_LOG_BYTES = 256 << 20
"""Of a stage. Logs of kernels and firmware have a few MiB; all modules with V=1 stay below 100."""


class CancelledError(SevkitError):
    """The build was interrupted."""

    exit_code = INTERRUPTED


class Processes:
    """The commands that are running now, so that a cancelled build leaves none behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[bytes], signal.Signals] = {}
        self._cancelled = False

    @contextlib.contextmanager
    def running(
        self, process: subprocess.Popen[bytes], stopped_by: signal.Signals
    ) -> Iterator[None]:
        """Keep `process` known while the block runs; stop what is left of it afterwards."""
        with self._lock:
            self._running[process] = stopped_by
        try:
            self.check()
            yield
        finally:
            _stop(process, stopped_by)
            with self._lock:
                del self._running[process]

    def cancel(self) -> None:
        """Stop every command, with its children, and refuse new ones."""
        with self._lock:
            self._cancelled = True
            running = list(self._running.items())
        for process, stopped_by in running:
            _stop(process, stopped_by)

    def check(self) -> None:
        """Raise `CancelledError` once the build was cancelled."""
        if self._cancelled:
            raise CancelledError("interrupted")


def _stop(process: subprocess.Popen[bytes], stopped_by: signal.Signals) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, stopped_by)
    process.wait()


def is_there(tool: str) -> bool:
    """Whether build steps find a command on this host; a file, where `tool` is an absolute path."""
    if tool.startswith("/"):
        return Path(tool).exists()
    return shutil.which(tool, path=ENVIRONMENT["PATH"]) is not None


def check_confinement() -> None:
    """Raise `HostError` when bubblewrap is missing or the kernel refuses it."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise HostError(
            "bwrap is missing, which confines the build steps",
            hint="apt-get install bubblewrap",
        )
    trial = subprocess.run(
        [bwrap, *_SHUT_OFF, "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if trial.returncode != 0:
        raise HostError(
            "bwrap can't confine a command on this host",
            why=trial.stderr.strip(),
            hint=_USER_NAMESPACE_HELP,
        )


class SandboxRunner:
    """Runs the commands of one stage; implements `sevkit.stage.Runner`."""

    def __init__(
        self,
        *,
        title: str,
        work: Path,
        inputs: Mapping[str, Path],
        log: Path,
        jobs: int,
        confined: bool,
        processes: Processes,
        on_progress: Callable[[int, int | None, str], None],
        leftovers: Path | None = None,
        root: Path | None = None,
    ):
        self._title = title
        self._work = work
        self._inputs = inputs
        self._log = log
        self._jobs = jobs
        self._confined = confined
        self._processes = processes
        self._on_progress = on_progress
        self._leftovers = leftovers
        self._root = root

    @property
    def work(self) -> Path:
        """An empty private folder, removed after the stage."""
        return self._work

    @property
    def jobs(self) -> int:
        """How many processes the stage may keep busy."""
        return self._jobs

    @property
    def leftovers(self) -> Path | None:
        """Where stages of this kind leave work for each other; None when they must not."""
        return self._leftovers

    @property
    def environment(self) -> Mapping[str, str]:
        """The fixed environment of every command."""
        return ENVIRONMENT

    def confined(self, argv: Sequence[str], *, cwd: Path) -> Sequence[str]:
        """`argv` as it is started in the sandbox; see `sevkit.stage.Runner`."""
        return self._confine(argv, cwd, ()) if self._confined else argv

    def progress(self, done: int, total: int | None, note: str = "") -> None:
        """Tell how far the stage is. Raises `CancelledError` once the build was cancelled."""
        self._processes.check()
        self._on_progress(done, total, note)

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] | None = None,
        reading: Sequence[Path] = (),
    ) -> None:
        """Run `argv`; see `sevkit.command.Run`. Raises `BuildError` when it fails."""
        command = [os.fspath(word) for word in argv]
        environment = {**ENVIRONMENT, **(env or {})}
        full = self._confine(command, cwd, reading) if self._confined else supervised(command)
        shown = " ".join(
            [f"cd {shlex.quote(str(cwd))} &&", *_assignments(env), shlex.join(command)]
        )
        last = deque[str](maxlen=_LAST_LINES)

        def heard(line: str) -> None:
            log.write(line + "\n")
            last.append(line[:_LAST_CHARACTERS])
            if os.fstat(log.fileno()).st_size > _LOG_BYTES:
                raise failed(f"says more than {_LOG_BYTES >> 20} MiB")
            if on_line is not None:
                on_line(line)

        def failed(how: str) -> BuildError:
            return BuildError(
                f"{self._title}: {Path(command[0]).name} {how}",
                why="\n".join([f"$ {shown}", *lines_that_matter(last)]),
                log=self._log,
            )

        with self._log.open("a", buffering=1, encoding="utf-8", errors="replace") as log:
            log.write(f"$ {shown}\n")
            log.flush()
            status = self._run(full, cwd, environment, heard)
            log.write(f"[status {status}]\n")
        self._processes.check()
        if status != 0:
            raise failed(f"failed ({_status_text(status)})")

    def interactively(
        self, argv: Sequence[str | Path], *, cwd: Path, reading: Sequence[Path] = ()
    ) -> None:
        """Run `argv` with the user in front of it. Raises `BuildError` when it fails."""
        command = [os.fspath(word) for word in argv]
        full = self._confine(command, cwd, reading) if self._confined else command
        environment = {**ENVIRONMENT, "TERM": os.environ.get("TERM", "dumb")}
        status = run_apart(full, cwd, environment)
        if status != 0:
            raise BuildError(
                f"{self._title}: {' '.join(command[-1:])} failed ({_status_text(status)})"
            )

    def _run(
        self,
        command: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        on_line: Callable[[str], None],
    ) -> int:
        self._processes.check()
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=_UMASK,
            )
        except OSError as error:
            raise HostError(f"{command[0]} can't be started: {error.strerror}") from error
        stopped_by = signal.SIGKILL if self._confined else signal.SIGTERM
        with self._processes.running(process, stopped_by):
            assert process.stdout is not None
            with process.stdout as output:
                for line in iter(lambda: output.readline(_LINE_BYTES), b""):
                    on_line(line.decode("utf-8", "replace").rstrip("\n"))
            return process.wait()

    def _confine(self, command: Sequence[str], cwd: Path, reading: Sequence[Path]) -> list[str]:
        options = ["bwrap", *_SHUT_OFF, "--proc", "/proc", "--dev", "/dev"]
        for folder in ("/tmp", "/dev/shm"):  # sem_open(3) needs the second, and Python's pools it
            options += ["--tmpfs", folder]
        root = self._root or Path("/")
        for folder in _HOST_FOLDERS:
            place = root / folder.lstrip("/")
            if place.is_symlink():
                options += ["--symlink", str(place.readlink()), folder]
            elif place.is_dir():
                options += ["--ro-bind", str(place), folder]
        for place in root.glob(_HIDDEN):
            options += ["--tmpfs", f"/{place.relative_to(root)}"]
        for path in _HOST_FILES:
            options += ["--ro-bind-try", str(root / path.lstrip("/")), path]
        for readable in dict.fromkeys([*self._inputs.values(), *reading]):
            options += ["--ro-bind", str(readable), str(readable)]
        options += ["--bind", str(self._work), str(self._work)]
        options += ["--remount-ro", "/dev", "--remount-ro", "/"]
        return [*options, "--chdir", str(cwd), "--", *command]


def _assignments(env: Mapping[str, str] | None) -> list[str]:
    return [f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()]


def lines_that_matter(lines: Sequence[str], count: int = 8) -> list[str]:
    """The lines that tell why a command failed: its errors, else the end of its output."""
    telling = [line for line in lines if _TELLING.search(line) and not _AFTERWARDS.match(line)]
    return (telling or [line for line in lines if line.strip()])[-count:]


def _status_text(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
