# SPDX-License-Identifier: Apache-2.0
"""The kata-agent of docs/own-agent.md: every line of its recipe but the address and the digest.

The program is none of Kata's. It does as PID 1 what their agent does first: mount what it mounts,
listen on vsock port 1024, say so on the console.
"""

import gzip
import hashlib
import io
import lzma
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from documented import REPOSITORY, read

from sevkit.rootfs import cpio

Sevkit = Callable[..., subprocess.CompletedProcess[str]]

PROGRAM = r"""
#include <stdio.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static const char *const name = "kata-agent", *const shared = "/run/kata-containers/shared";

static void make(const char *type, const char *place)
{
    mkdir(place, 0755);
    if (mount(type, place, type, 0, NULL) != 0)
        perror(place);
}

int main(void)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_port = 1024};
    struct sockaddr *any = (struct sockaddr *)&address;
    address.svm_cid = VMADDR_CID_ANY;
    make("devtmpfs", "/dev");
    make("proc", "/proc");
    make("sysfs", "/sys");
    make("devpts", "/dev/pts");
    make("tmpfs", "/run");
    make("cgroup2", "/sys/fs/cgroup");
    int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (bind(listener, any, sizeof address) != 0 || listen(listener, 1) != 0)
        perror("vsock");
    else
        printf("%s, process %d, listens; containers would be below %s\n", name, getpid(), shared);
    fflush(stdout);
    sleep(2);
    return reboot(RB_POWER_OFF);
}
"""

PAGE = read(REPOSITORY / "docs" / "own-agent.md")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tarball that is laid out as Kata's: an initrd in it, the agent in that."""
    folder = tmp_path_factory.mktemp("kata")
    (folder / "agent.c").write_text(PROGRAM)
    argv = ["gcc", "-static", "-Os", "-o", "kata-agent", "agent.c"]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)
    initrd = folder / "initrd"
    with initrd.open("wb") as stream:
        cpio.write(
            [
                cpio.Directory(path="/usr"),
                cpio.Directory(path="/usr/bin"),
                cpio.File(path="/usr/bin/kata-agent", data=folder / "kata-agent", mode=0o755),
                cpio.Symlink(path="/init", target="usr/bin/kata-agent"),
            ],
            stream,
        )
    packed = gzip.compress(initrd.read_bytes(), mtime=0)
    tarball = io.BytesIO()
    with tarfile.open(fileobj=tarball, mode="w") as tar:
        place = "./opt/kata/share/kata-containers"
        member = tarfile.TarInfo(f"{place}/kata-alpine-3.18.initrd")
        member.size = len(packed)
        tar.addfile(member, io.BytesIO(packed))
        link = tarfile.TarInfo(f"{place}/kata-containers-initrd.img")
        link.type, link.linkname = tarfile.SYMTYPE, "kata-alpine-3.18.initrd"
        tar.addfile(link)
    served = folder / "served"
    served.mkdir()
    (served / "kata-static-3.10.0-amd64.tar.xz").write_bytes(lzma.compress(tarball.getvalue()))
    return served


@pytest.fixture(scope="module")
def server(archive: Path) -> Iterator[str]:
    """A loopback server that has the tarball."""
    handler = partial(SimpleHTTPRequestHandler, directory=archive)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def project(tmp_path: Path, archive: Path, server: str) -> Path:
    """A project with the page's recipe; address and digest are the loopback server's."""
    [tarball] = archive.iterdir()
    text = PAGE.recipes["kata.toml"].replace("https://download.example", server)
    stated = next(line for line in text.splitlines() if line.startswith("sha256 = "))
    found = hashlib.sha256(tarball.read_bytes()).hexdigest()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "kata.toml").write_text(text.replace(stated, f'sha256 = "{found}"'))
    return tmp_path


@pytest.mark.network
@pytest.mark.boots
def test_an_agent_in_an_archive_in_an_archive_is_pid_1_and_has_what_it_needs(
    sevkit: Sevkit, mirror: None, project: Path
) -> None:
    place = ("-C", project)
    built = sevkit(*place, "build", "kata", "--ci")
    assert built.returncode == 0, built.stderr
    why = sevkit(*place, "why", "--image", "kata", "/init")
    assert "licence  Apache-2.0" in why.stdout, why.stderr
    booted = sevkit(
        *place, "boot", "kata", "--console", "--until", "would be below", "--timeout", "100"
    )
    assert booted.returncode == 0, booted.stderr
    assert "kata-agent, process 1, listens" in booted.stdout
    assert not [line for line in booted.stdout.splitlines() if "No such device" in line]


@pytest.mark.network
def test_a_link_in_the_tarball_and_a_wrong_name_are_refused_with_what_to_write(
    sevkit: Sevkit, mirror: None, project: Path
) -> None:
    recipe = project / "recipes" / "kata.toml"
    right = recipe.read_text()
    for old, new, said in (
        ("kata-alpine-3.18.initrd", "kata-containers-initrd.img", "kata-containers-initrd.img"),
        ("usr/bin/kata-agent", "usr/bin/kata-agnt", "usr/bin/kata-agent"),
    ):
        recipe.write_text(right.replace(old, new))
        result = sevkit("-C", project, "build", "kata:agent", "--ci")
        assert result.returncode == 1, result.stdout
        assert said in result.stderr
