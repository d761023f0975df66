# SPDX-License-Identifier: Apache-2.0
"""The account: what is missing from it, the budget, and the answers of `sevkit why`."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from sevkit.errors import BuildError, ImageError, RecipeError
from sevkit.rootfs.contents import Package, Row, account, check_budget, read_contents, why
from sevkit.rootfs.copyright import Licences, read_copyright, spdx

CRUN = Package(name="crun", version="1.8", source="crun", licence="GPL-2.0-or-later")
CAP = Package(name="libcap2", version="2.66", source="libcap2", licence="BSD-3-Clause")


def a_file(path: str, size: int, package: Package, *chain: str, **fields: Any) -> Row:
    about = {"version": package.version, "licence": package.licence, "sha256": "ab" * 32}
    return Row(
        **{"path": path, "type": "file", "mode": "0755", "size": size, "origin": "package"}
        | {"package": package.name, "chain": chain or (path,)}
        | about
        | fields
    )


ROWS = [
    a_file("/usr/bin/crun", 3 << 20, CRUN),
    a_file(
        "/usr/lib/libcap.so.2.66",
        2 << 20,
        CAP,
        "/usr/bin/crun",
        "libcap.so.2 → /usr/lib/libcap.so.2.66",
    ),
    a_file("/usr/lib/libcap-too", 2 << 20, CAP, same_as="/usr/lib/libcap.so.2.66"),
    Row(path="/lib", type="symlink", mode="0777", target="usr/lib", origin="sevkit", chain=("/x",)),
    Row(
        path="/usr/lib/libcap.so.2",
        type="symlink",
        mode="0777",
        target="libcap.so.2.66",
        origin="package",
        package="libcap2",
        version="2.66",
        licence="BSD-3-Clause",
        chain=("/usr/bin/crun", "libcap.so.2"),
    ),
    Row(path="/usr", type="directory", mode="0755", origin="sevkit", chain=("/usr holds it",)),
    Row(path="/usr/lib", type="directory", mode="0755", origin="sevkit", chain=("/usr/lib holds",)),
    Row(path="/usr/bin", type="directory", mode="0755", origin="sevkit", chain=("/usr/bin holds",)),
    Row(path="/dev", type="directory", mode="0755", origin="sevkit", chain=("all",)),
    Row(path="/dev/null", type="char", mode="0666", device="1:3", origin="sevkit", chain=("all",)),
    Row(
        path="/init",
        type="file",
        mode="0755",
        size=9,
        sha256="cd" * 32,
        origin="agent",
        chain=("/init",),
    ),
]
PACKAGES = {"crun": CRUN, "libcap2": CAP}


def contents(**fields: int) -> dict[str, Any]:
    return account(ROWS, PACKAGES, **{"archive_bytes": 6 << 20, "max_bytes": 14 << 20} | fields)


def test_an_account_is_read_as_it_was_written() -> None:
    made = json.loads(json.dumps(contents()))
    assert read_contents(json.dumps(made).encode(), "contents.json") == made


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made.pop("paths"),
        lambda made: made.update(paths={}),
        lambda made: made["paths"].append([]),
        lambda made: made["paths"].append(made["paths"][0]),
        lambda made: made["paths"][0].pop("type"),
        lambda made: made["paths"][0].update(type="door"),
        lambda made: made["paths"][0].pop("mode"),
        lambda made: made["paths"][0].update(size="9"),
        lambda made: made["paths"][0].update(chain=[]),
        lambda made: made["paths"][0].update(chain=[1]),
        lambda made: made["paths"][0].update(path="x"),
        lambda made: made["paths"][0].update(package="crun"),
        lambda made: made["paths"][0].update(target="x"),
        lambda made: made["paths"][0].pop("origin"),
    ],
)
def test_what_is_no_account_is_refused(change: Callable[[Any], Any]) -> None:
    made = json.loads(json.dumps(contents()))
    change(made)
    with pytest.raises(ImageError, match=r"contents\.json is no account of an initramfs"):
        read_contents(json.dumps(made).encode(), "contents.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"1", b"[" * 100_000, b"\xff"])
def test_what_is_no_json_object_is_no_account(data: bytes) -> None:
    with pytest.raises(ImageError, match="is no account"):
        read_contents(data, "contents.json")


def test_packages_are_charged_once_for_a_hard_linked_file() -> None:
    sizes = {package["name"]: package["bytes"] for package in contents()["packages"]}
    assert sizes == {"crun": 3 << 20, "libcap2": 2 << 20}


@pytest.mark.parametrize(
    "row",
    [
        Row(path="/stray", type="file", mode="0644", origin=None, chain=("/stray",)),
        Row(path="/stray", type="file", mode="0644", origin="recipe", chain=()),
        Row(path="/stray", type="file", mode="0644", origin="package", package="x", chain=("/a",)),
    ],
)
def test_a_path_that_nothing_accounts_for_is_refused(row: Row) -> None:
    with pytest.raises(
        BuildError, match="1 paths of the initramfs are not accounted for"
    ) as caught:
        account([*ROWS, row], PACKAGES, archive_bytes=1, max_bytes=2)
    assert caught.value.why == "/stray"


def test_over_budget_is_an_error_with_an_account() -> None:
    check_budget(contents(max_bytes=6 << 20))
    with pytest.raises(BuildError) as caught:
        check_budget(contents(max_bytes=(6 << 20) - 1))
    assert "6.00 MiB unpacked" in caught.value.what
    lines = [line.split() for line in caught.value.why.splitlines()]
    assert lines[0] == ["3.00", "MiB", "crun", "1.8"]
    assert lines[1] == ["2.00", "MiB", "libcap2", "2.66"]
    assert ["3.00", "MiB", "/usr/bin/crun"] in lines


def test_why_names_digest_package_licence_and_chain() -> None:
    lines = why(contents(), "/usr/lib/libcap.so.2.66")
    assert lines == [
        "/usr/lib/libcap.so.2.66: file, mode 0755, 2097152 bytes",
        f"  sha256   {'ab' * 32}",
        "  package  libcap2 2.66",
        "  licence  BSD-3-Clause",
        "  why      /usr/bin/crun",
        "             needs libcap.so.2 → /usr/lib/libcap.so.2.66",
    ]


def test_why_follows_links_and_tells_each() -> None:
    lines = why(contents(), "lib/libcap.so.2")
    headings = [line for line in lines if not line.startswith(" ")]
    assert headings == [
        "/lib: symlink, to usr/lib",
        "/usr/lib/libcap.so.2: symlink, to libcap.so.2.66",
        "/usr/lib/libcap.so.2.66: file, mode 0755, 2097152 bytes",
    ]


@pytest.mark.parametrize(
    ("path", "heading"),
    [
        ("/usr", "/usr: directory, mode 0755, 6 paths below it, 5242880 bytes"),
        ("/dev/null", "/dev/null: char, mode 0666, device 1:3"),
        ("/init/", "/init: file, mode 0755, 9 bytes"),
        ("/usr/lib/libcap-too", "/usr/lib/libcap-too: file, mode 0755, 2097152 bytes, the same"),
    ],
)
def test_why_answers_for_every_type(path: str, heading: str) -> None:
    assert why(contents(), path)[0].startswith(heading)


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("/bin/crun", "/usr/bin/crun"),
        ("/usr/lib/libcap.so", "/usr/lib/libcap.so.2"),
        ("/usr/bin/crnu", "/usr/bin/crun"),
    ],
)
def test_an_unknown_path_is_answered_with_the_nearest(asked: str, near: str) -> None:
    with pytest.raises(RecipeError, match=f"{asked} is not in the initramfs") as caught:
        why(contents(), asked)
    assert near in caught.value.what


# --- copyright files -----------------------------------------------------------------------------

MACHINE_READABLE = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: thing

Files: *
Copyright: 2020 Someone
License: GPL-2+

Files: debian/*
 m4/*
License: Expat or GPL-3 with OpenSSL exception

License: GPL-2+
 text of it
"""


def test_the_licence_of_a_package_is_that_of_its_files_as_a_whole() -> None:
    assert read_copyright(MACHINE_READABLE) == Licences(
        "GPL-2.0-or-later", ("MIT OR LicenseRef-GPL-3-with-OpenSSL-exception",)
    )


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("", "see copyright"),
        ("Found in /usr/share/common-licenses/GPL-2, and so on.", "see copyright (GPL-2)"),
        (MACHINE_READABLE.replace("Files: *", "Files: src/*"), None),
    ],
)
def test_other_copyright_files_are_referred_to(text: str, licence: str | None) -> None:
    wanted = "GPL-2.0-or-later AND (MIT OR LicenseRef-GPL-3-with-OpenSSL-exception)"
    assert read_copyright(text).licence == (licence or wanted)


@pytest.mark.parametrize(
    ("synopsis", "expression"),
    [
        ("LGPL-2.1+", "LGPL-2.1-or-later"),
        ("GPL-2+ or Artistic", "GPL-2.0-or-later OR Artistic-1.0-Perl"),
        ("BSD-3-clause or GPL-2, and Expat", "(BSD-3-Clause OR GPL-2.0-only) AND MIT"),
        ("GPL-2 with Linux-syscall-note exception", "GPL-2.0-only WITH Linux-syscall-note"),
        ("public domain", "LicenseRef-public-domain"),
        ("", ""),
    ],
)
def test_debian_names_become_spdx_names(synopsis: str, expression: str) -> None:
    assert spdx(synopsis) == expression
