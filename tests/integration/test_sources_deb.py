# SPDX-License-Identifier: Apache-2.0
"""Debian packages through the real apt of this host, from its real mirror."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sevkit.archive import unpack, unpack_deb
from sevkit.errors import HostError, SourceError
from sevkit.recipe.model import DebSource, DebSourcePackage
from sevkit.sources import Apt, DebGroup, Pin, SourceGoneError, fetch, resolve

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mirror")]

HOST_FOLDERS = ("/var/lib/apt", "/var/cache/apt", "/var/lib/dpkg", "/etc/apt")


@pytest.fixture(scope="module")
def apt(tmp_path_factory: pytest.TempPathFactory) -> Apt:
    return Apt(tmp_path_factory.mktemp("apt"))


@pytest.fixture(scope="module", autouse=True)
def the_hosts_own_state_is_never_written() -> Iterator[None]:
    before = state_of_host()
    yield
    assert state_of_host() == before


def state_of_host() -> dict[str, tuple[int, int, str]]:
    """Path → size, time and digest of each file of the host's apt and dpkg."""
    return {
        str(path): (
            path.stat().st_size,
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for folder in HOST_FOLDERS
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def get(pin: Pin, folder: Path, apt: Apt) -> Path:
    path = folder / pin.name
    fetch(pin, path, lambda *told: None, apt)
    assert f"blob:{hashlib.sha256(path.read_bytes()).hexdigest()}" == pin.reference
    assert path.stat().st_size == pin.size
    return path


def test_a_package_of_this_host_is_found_and_fetched(apt: Apt, tmp_path: Path) -> None:
    [pin] = resolve(DebSource(deb="busybox-static"), apt)
    assert pin.origin["package"] == "busybox-static"
    assert pin.origin["path"].startswith("pool/")
    assert pin.origin["suite"]
    assert "://" not in json.dumps(dict(pin.origin))
    control = unpack_deb(get(pin, tmp_path, apt), tmp_path)
    assert (control.package, control.version) == ("busybox-static", pin.origin["version"])
    assert (tmp_path / "bin" / "busybox").stat().st_size > 1 << 20


def test_a_package_of_another_suite_comes_from_the_same_mirror(apt: Apt, tmp_path: Path) -> None:
    [here] = resolve(DebSource(deb="crun", suite="bookworm"), apt)
    [there] = resolve(DebSource(deb="crun", suite="trixie"), apt)
    assert (here.origin["suite"], there.origin["suite"]) == ("bookworm", "trixie")
    assert here.origin["version"] != there.origin["version"]
    assert unpack_deb(get(there, tmp_path, apt), tmp_path).version == there.origin["version"]


def test_a_group_is_closed_under_dependencies_and_holds_nothing_else(apt: Apt) -> None:
    pins = resolve(DebGroup(("crun",), "bookworm"), apt)
    names = [pin.origin["package"] for pin in pins]
    assert names == sorted(names)
    assert {"crun", "libc6", "libgcc-s1", "libseccomp2", "libyajl2"} <= set(names)
    assert not {"base-files", "dpkg", "bash", "libgpg-error-l10n"} & set(names)
    assert resolve(DebGroup(("crun",), "bookworm"), apt) == pins


def test_a_source_package_is_its_tarballs(apt: Apt, tmp_path: Path) -> None:
    request = DebSourcePackage.model_validate({"deb-src": "hello", "suite": "bookworm"})
    debian, orig = resolve(request, apt)
    assert (debian.name, orig.name) == ("hello_2.10-3.debian.tar.xz", "hello_2.10.orig.tar.gz")
    assert debian.origin["version"] == orig.origin["version"] == "2.10-3"
    for pin in (debian, orig):
        folder = tmp_path / pin.reference[-8:]
        folder.mkdir()
        unpack(get(pin, tmp_path, apt), folder)
    assert list(tmp_path.glob("*/debian/changelog"))
    assert list(tmp_path.glob("*/hello-2.10/configure.ac"))


def test_the_version_of_a_source_package_has_its_epoch(apt: Apt) -> None:
    request = DebSourcePackage.model_validate({"deb-src": "libcap2", "suite": "bookworm"})
    pins = resolve(request, apt)
    assert all(pin.origin["version"].startswith("1:2.66-") for pin in pins)


@pytest.mark.parametrize(
    ("request_", "what", "hint"),
    [
        (
            DebSource(deb="busybox-statik"),
            "no package busybox-statik in bookworm",
            "busybox-static",
        ),
        (DebGroup(("crun", "libseccmp2")), "no package libseccmp2 in bookworm", "libseccomp2"),
        (
            DebSourcePackage.model_validate({"deb-src": "helo"}),
            "no source package helo in bookworm",
            "hello",
        ),
        (DebSource(deb="crun", version="99"), "crun can't be had from bookworm", "there is 1."),
        (DebSource(deb="crun", suite="nosuch"), "no mirror of this host has nosuch", "suite"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(
    request_: DebSource, what: str, hint: str, apt: Apt
) -> None:
    with pytest.raises(SourceError) as caught:
        resolve(request_, apt)
    assert what in caught.value.what
    assert hint in str(caught.value)
    [pin] = resolve(DebSource(deb="crun"), apt)
    assert resolve(DebSource(deb="crun", version=pin.origin["version"]), apt) == [pin]


def test_a_version_that_has_left_the_mirror_is_told_apart(apt: Apt, tmp_path: Path) -> None:
    [pin] = resolve(DebSource(deb="crun"), apt)
    old = {**pin.origin, "path": "pool/main/c/crun/crun_0.0.1_amd64.deb"}
    gone = replace(pin, reference="blob:" + "0" * 64, origin=old)
    with pytest.raises(SourceGoneError, match="has left the mirror"):
        fetch(gone, tmp_path / "out", lambda *told: None, apt)
    assert list(tmp_path.iterdir()) == []
    get(pin, tmp_path, apt)


def test_other_bytes_than_the_index_promises_are_refused(apt: Apt, tmp_path: Path) -> None:
    [pin] = resolve(DebSource(deb="crun"), apt)
    with pytest.raises(SourceError, match="could not be fetched") as caught:
        fetch(replace(pin, reference="blob:" + "0" * 64), tmp_path / "out", lambda *t: None, apt)
    assert not isinstance(caught.value, SourceGoneError)
    assert list(tmp_path.iterdir()) == []
    get(pin, tmp_path, apt)


@pytest.mark.parametrize("keep", [0.5, 1.0, 1.5])
def test_what_is_left_of_a_broken_transfer_does_no_harm(
    keep: float, apt: Apt, tmp_path: Path
) -> None:
    [pin] = resolve(DebSource(deb="crun"), apt)
    content = get(pin, tmp_path, apt).read_bytes()
    length = int(len(content) * keep)
    (tmp_path / pin.name).write_bytes((content + content)[:length])
    get(pin, tmp_path, apt)
    (tmp_path / pin.name).write_bytes(bytes(length))
    get(pin, tmp_path, apt)
    assert [path.name for path in tmp_path.iterdir()] == [pin.name]


def test_builds_at_once_share_one_state(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from sevkit.sources import *; "
        "from sevkit.recipe.model import DebSource; "
        "[pin] = resolve(DebSource(deb='crun'), Apt(Path(sys.argv[1]))); print(pin.reference)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "apt")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate()[0] for process in running}
    assert all(process.returncode == 0 for process in running)
    assert len(said) == 1


def test_an_interrupted_fetch_leaves_no_process(apt: Apt, tmp_path: Path) -> None:
    [pin] = resolve(DebSource(deb="crun"), apt)

    def stop(done: int, total: int | None, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(pin, tmp_path / pin.name, stop, apt)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(tmp_path) not in listed.stdout
    get(pin, tmp_path, apt)


def test_the_hosts_update_hooks_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "host.conf"
    conf.write_text(
        f'APT::Update::Pre-Invoke {{ "touch {tmp_path}/hooked"; }};\n'
        f'APT::Update::Post-Invoke {{ "touch {tmp_path}/hooked"; }};\n'
        'APT::Default-Release "nosuch";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(conf))
    assert resolve(DebSource(deb="crun"), Apt(tmp_path / "apt"))
    assert not (tmp_path / "hooked").exists()


def test_a_host_without_network_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [pin] = resolve(DebSource(deb="crun"), Apt(tmp_path / "apt"))
    conf = tmp_path / "host.conf"
    conf.write_text('Acquire::http::Proxy "http://127.0.0.1:9";\nAcquire::Retries "0";\n')
    monkeypatch.setenv("APT_CONFIG", str(conf))
    for action in (
        lambda: resolve(DebSource(deb="crun"), Apt(tmp_path / "apt")),
        lambda: fetch(pin, tmp_path / "out", lambda *told: None, Apt(tmp_path / "apt")),
    ):
        with pytest.raises(SourceError, match="could not be fetched") as caught:
            action()
        assert not isinstance(caught.value, SourceGoneError)
        assert "127.0.0.1" in caught.value.why
        assert len(str(caught.value).splitlines()) <= 6
        assert "network" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_host_without_apt_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sevkit.sources import deb

    monkeypatch.setattr(deb, "_HELPER", tmp_path / "absent")
    with pytest.raises(HostError, match="apt is missing"):
        resolve(DebSource(deb="crun"), Apt(tmp_path / "apt"))


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user, which only root can")
def test_an_ordinary_user_can_do_it_all() -> None:
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    package = Path(__file__).resolve().parents[2] / "builder"
    script = (
        "import sys; from pathlib import Path; from sevkit.sources import *; "
        "from sevkit.recipe.model import DebSource; place = Path(sys.argv[1]); "
        "apt = Apt(place / 'apt'); [pin] = resolve(DebSource(deb='crun'), apt); "
        "fetch(pin, place / 'out', lambda *told: None, apt); print(pin.reference)"
    )
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(package, f"{name}/builder")
        os.chown(name, 65534, 65534)
        done = subprocess.run(
            [
                *(setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"),
                *(sys.executable, "-c", script, name),
            ],
            env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{name}/builder", "HOME": name},
            cwd=name,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        digest = hashlib.sha256((Path(name) / "out").read_bytes()).hexdigest()
        assert done.stdout.strip() == f"blob:{digest}"
        assert (Path(name) / "out").stat().st_uid == 65534
