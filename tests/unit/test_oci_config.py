# SPDX-License-Identifier: Apache-2.0
"""What a container is given, from its image's configuration and the user's wishes."""

import json
from pathlib import Path
from typing import Any

import pytest

from sevkit.errors import RecipeError
from sevkit.guest.container import parse_bytes
from sevkit.guest.workload import accounts_of, prepare
from sevkit.oci.config import CAPABILITIES, Accounts, Overrides, runtime_config
from sevkit.oci.seccomp import allowed_calls, profile

IMAGE: dict[str, Any] = {
    "architecture": "amd64",
    "config": {
        "Env": ["PATH=/opt/bin", "A=1"],
        "Entrypoint": ["/entry"],
        "Cmd": ["serve", "--all"],
        "WorkingDir": "/srv",
        "User": "web",
    },
}
ACCOUNTS = Accounts(
    passwd="root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:44:Web:/var/www:/bin/sh\n",
    group="root:x:0:\nwww:x:44:\nlog:x:4:web,root\nbad:x:y:web\n",
)


def made(**wishes: Any) -> Any:
    return runtime_config(IMAGE, Overrides(**wishes), ACCOUNTS)


def test_an_image_runs_as_it_says() -> None:
    process = made()["process"]
    assert process["args"] == ["/entry", "serve", "--all"]
    assert process["env"] == ["PATH=/opt/bin", "HOME=/var/www", "A=1"]
    assert process["cwd"] == "/srv"
    assert process["user"] == {"uid": 33, "gid": 44, "additionalGids": [4]}
    assert process["terminal"] is False


def test_the_user_overrides_command_variables_folder_and_user() -> None:
    process = made(argv=["once"], env=["A=2", "B="], cwd="/tmp", user="7:log", tty=True)["process"]
    assert process["args"] == ["/entry", "once"]
    assert process["env"] == ["PATH=/opt/bin", "HOME=/", "TERM=xterm", "A=2", "B="]
    assert process["cwd"] == "/tmp"
    assert process["user"] == {"uid": 7, "gid": 4}
    assert process["terminal"] is True


def test_a_bare_folder_runs_what_is_given_and_nothing_else() -> None:
    process: Any = runtime_config({}, Overrides(argv=["sh"]))["process"]
    assert (process["args"], process["cwd"], process["user"]) == (["sh"], "/", {"uid": 0, "gid": 0})
    with pytest.raises(RecipeError, match="names no command"):
        runtime_config({}, Overrides())


@pytest.mark.parametrize("user", ["nobody", "web:nobody", "root:"])
def test_a_user_or_group_that_the_image_does_not_know_is_refused(user: str) -> None:
    if user == "root:":
        assert made(user=user)["process"]["user"]["uid"] == 0
        return
    with pytest.raises(RecipeError, match="nobody"):
        made(user=user)


@pytest.mark.parametrize("number", ["4294967295", "99999999999", "٣", "²"])
def test_a_number_that_no_user_has_is_refused(number: str) -> None:
    assert made(user="4294967294:4294967294")["process"]["user"]["gid"] == 4294967294
    for user in (number, f"0:{number}"):
        with pytest.raises(RecipeError, match=f"has no (user|group) '{number}'"):
            made(user=user)


@pytest.mark.parametrize("value", ["sh", [1], {"a": 1}, [["sh"]]])
def test_an_image_configuration_of_another_shape_is_refused(value: object) -> None:
    with pytest.raises(RecipeError, match="'Cmd' that is no list"):
        runtime_config({"config": {"Cmd": value}}, Overrides())  # type: ignore[dict-item]


def test_limits_are_there_when_asked_for() -> None:
    resources = made(memory_bytes=64 << 20, pids=20, cpus=1.5)["linux"]["resources"]
    assert resources["memory"] == {"limit": 64 << 20}
    assert resources["pids"] == {"limit": 20}
    assert resources["cpu"] == {"quota": 150_000, "period": 100_000}
    without = made(pids=0)["linux"]["resources"]
    assert without == {"devices": [{"allow": False, "access": "rwm"}]}
    assert made()["linux"]["resources"]["pids"] == {"limit": 2048}


def test_a_container_is_shut_in_whatever_is_asked_for() -> None:
    config = made(tty=True, user="0")
    kinds = {each["type"] for each in config["linux"]["namespaces"]}
    assert kinds == {"pid", "mount", "uts", "ipc", "network", "cgroup"}
    process = config["process"]
    assert process["noNewPrivileges"] is True
    sets = process["capabilities"]
    assert set(sets) == {"bounding", "effective", "permitted"}
    for refused in ("SYS_ADMIN", "MKNOD", "NET_RAW", "SYS_PTRACE", "SYS_BOOT", "SYS_MODULE"):
        assert f"CAP_{refused}" not in CAPABILITIES
    assert {"/proc/kcore", "/proc/kallsyms", "/sys/firmware"} <= set(config["linux"]["maskedPaths"])
    assert {"/proc/sys", "/proc/sysrq-trigger"} <= set(config["linux"]["readonlyPaths"])
    system = {each["destination"]: each["options"] for each in config["mounts"]}
    assert "ro" in system["/sys"]
    assert "ro" in system["/sys/fs/cgroup"]


def test_calls_are_refused_unless_they_are_named() -> None:
    rules: Any = profile()["syscalls"]
    assert profile()["defaultAction"] == "SCMP_ACT_ERRNO"
    plain = {name for rule in rules if "args" not in rule for name in rule["names"]}
    refused = {
        name for rule in rules if rule["action"] == "SCMP_ACT_ERRNO" for name in rule["names"]
    }
    assert not allowed_calls() & refused
    assert {"mount", "reboot", "ptrace", "pivot_root", "bpf", "unshare", "setns"} <= refused
    assert not {"socket", "clone", "clone3", "syslog"} & plain
    families = [rule["args"][0]["value"] for rule in rules if rule["names"] == ["socket"]]
    assert families == [1, 2, 10, 16]
    assert 40 not in families  # AF_VSOCK


def test_the_configuration_fits_a_message_and_is_the_same_every_time() -> None:
    text = json.dumps(made())
    assert len(text) < 20_000
    assert text == json.dumps(made())


def test_a_folder_is_prepared_with_its_own_users_never_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").symlink_to("/etc/passwd")
    (tmp_path / "etc" / "group").write_text("own:x:9:\n")
    assert accounts_of(tmp_path) == Accounts("", "own:x:9:\n")
    with prepare(f"dir:{tmp_path}", Overrides(argv=["sh"], user="1:own")) as ready:
        assert ready.folder == tmp_path
        assert ready.config is not None
        process: Any = ready.config["process"]
        assert process["user"] == {"uid": 1, "gid": 9}


@pytest.mark.parametrize(
    "name", ["busybox", "dir:", "docker://busybox", ":x", "dir:/no/such/folder"]
)
def test_a_name_of_no_root_file_system_is_refused(name: str, tmp_path: Path) -> None:
    with (
        pytest.raises(RecipeError, match=r"names no root file system|is not a folder"),
        prepare(name, Overrides(argv=["sh"])),
    ):
        pass


def test_sizes_are_read_as_docker_reads_them() -> None:
    assert parse_bytes("--memory", "64M") == parse_bytes("--memory", "65536 KiB") == 64 << 20
    assert parse_bytes("--memory", "1g") == 1 << 30
    for text in ("64", "M", "1T", "5M", "-1M", "1.5G", "9999999G"):
        with pytest.raises(RecipeError, match="--memory"):
            parse_bytes("--memory", text)
