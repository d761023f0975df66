# SPDX-License-Identifier: Apache-2.0
"""What a host's apt configuration says about Debian's mirrors, in both of its styles."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sevkit.errors import HostError
from sevkit.sources.mirrors import Mirror, host_mirrors, mirrors_of

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEB822 = f"""\
# the host's own
Types: deb deb-src
URIs: https://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main non-free
Signed-By: {KEYRING}
Check-Valid-Until: no

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: https://other.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: https://vendor.example/apt
Suites: stable
Components: main
"""
URI = "http://m.example/debian/"
ONE_LINE = f"""\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by={KEYRING},/etc/own.gpg check-valid-until=no] {URI} bookworm main # x
deb-src http://m.example/debian/ bookworm main
deb http://vendor.example/flat ./
deb [trusted=yes] http://vendor.example/apt stable main
"""


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Make these the sources of this host, without package lists, for the real apt."""

    def write(name: str, text: str) -> None:
        parts = tmp_path / "sources.list.d"
        parts.mkdir(exist_ok=True)
        (parts / name).write_text(text)
        conf = tmp_path / "apt.conf"
        conf.write_text(
            f'Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "{parts}";\n'
            f'Dir::State::Lists "{tmp_path}/lists";\n'
        )
        monkeypatch.setenv("APT_CONFIG", str(conf))

    return write


def test_a_deb822_file_is_read_with_its_options(configure: Callable[[str, str], None]) -> None:
    configure("debian.sources", DEB822)
    main, updates, security = host_mirrors()
    assert main == Mirror(
        "https://mirror.example/debian",
        "bookworm",
        "main non-free",
        {"Signed-By": KEYRING, "Check-Valid-Until": "no"},
    )
    assert (updates.suite, updates.base, updates.pocket) == (
        "bookworm-updates",
        "bookworm",
        "updates",
    )
    assert security.archive == "debian-security"
    assert security.options["Signed-By"].startswith("-----BEGIN")
    assert "\n .\n abc\n" in security.stanza("deb")


def test_a_one_line_file_is_read_with_its_options(configure: Callable[[str, str], None]) -> None:
    configure("a.list", ONE_LINE)
    binary, source = host_mirrors()
    assert binary.components == "main"
    assert binary.options == {"Signed-By": f"{KEYRING} /etc/own.gpg", "Check-Valid-Until": "no"}
    assert binary.stanza("deb-src") == (
        "Types: deb-src\nURIs: http://m.example/debian/\nSuites: bookworm\n"
        "Components: main\nTargets: Sources\n"
        f"Signed-By: {KEYRING} /etc/own.gpg\nCheck-Valid-Until: no\n"
    )
    assert source.uri == binary.uri


def test_a_host_without_debian_is_told_so(configure: Callable[[str, str], None]) -> None:
    configure("vendor.list", "deb https://vendor.example/apt stable main\n")
    with pytest.raises(HostError, match="no Debian mirror"):
        host_mirrors()
    configure("debian.list", "deb https://m.example/debian stable main\n")
    assert [mirror.suite for mirror in host_mirrors()] == ["stable"]


def test_a_list_of_mirrors_is_replaced_by_its_first(
    configure: Callable[[str, str], None], tmp_path: Path
) -> None:
    (tmp_path / "list").write_text("# comment\nhttps://m.example/debian\tpriority:1\nhttps://n/\n")
    configure("debian.list", f"deb mirror+file:{tmp_path}/list bookworm main\n")
    assert [mirror.uri for mirror in host_mirrors()] == ["https://m.example/debian"]


HOST = (
    Mirror("http://m/debian", "bookworm", "main", {"Signed-By": "/etc/own.gpg"}),
    Mirror("http://m/debian", "bookworm-updates", "main", {}),
    Mirror("http://m/debian", "bookworm-backports", "main", {}),
    Mirror("http://m/debian-security", "bookworm-security", "main", {}),
)


@pytest.mark.parametrize(
    ("suite", "expected"),
    [
        (
            "bookworm",
            ["bookworm", "bookworm-updates", "bookworm-backports", "bookworm-security"],
        ),
        ("trixie", ["trixie", "trixie-updates", "trixie-security"]),
        ("sid", ["sid"]),
        (
            "trixie-backports",
            ["trixie", "trixie-updates", "trixie-security", "trixie-backports"],
        ),
        (
            "bookworm-backports",
            ["bookworm", "bookworm-updates", "bookworm-backports", "bookworm-security"],
        ),
    ],
)
def test_another_suite_comes_from_the_same_places(suite: str, expected: list[str]) -> None:
    found = mirrors_of(suite, HOST)
    assert [mirror.suite for mirror in found] == expected
    assert {mirror.uri for mirror in found} <= {mirror.uri for mirror in HOST}
    assert found[0].options["Signed-By"].startswith("/etc/own.gpg")


def test_another_suite_is_also_trusted_by_the_keyring_of_the_distribution() -> None:
    assert Path(KEYRING).exists(), "debian-archive-keyring is missing: make setup installs it"
    trixie, *_ = mirrors_of("trixie", HOST)
    assert trixie.options["Signed-By"] == f"/etc/own.gpg {KEYRING}"
    bookworm, *_ = mirrors_of("bookworm", HOST)
    assert bookworm.options["Signed-By"] == "/etc/own.gpg"
