# SPDX-License-Identifier: Apache-2.0
"""Locked, offline and vendored builds, of stages that are quick (docs/locked-builds.md)."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sevkit.recipe.model import DebSource
from sevkit.sources import Pin, PinMemory

REPOSITORY = Path(__file__).resolve().parents[2]
Answer = subprocess.CompletedProcess[str]
Sevkit = Callable[..., Answer]
RECIPE = "sev-guest-ovmf"
LINUX = "linux-source-6.12"

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mirror")]


@pytest.fixture(scope="module")
def locked(sevkit: Sevkit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose recipe is locked."""
    project = tmp_path_factory.mktemp("project")
    for folder in ("recipes", "kernel-configs", "patches", "agent"):
        shutil.copytree(REPOSITORY / folder, project / folder)
    result = sevkit("-C", project, "lock", RECIPE)
    assert result.returncode == 0, result.stderr
    return project


@pytest.fixture
def project(locked: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    return Path(shutil.copytree(locked, tmp_path / "project"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def hint_of(refused: Answer) -> list[str]:
    """The words after `sevkit` of the command that an error tells to try."""
    found = re.search(r"try: sevkit (.*)", refused.stderr)
    assert found is not None, refused.stderr
    return shlex.split(found[1])


def without_network(store: Path, *words: str | Path) -> Answer:
    """Run sevkit in a network namespace that has no interface but a dead loopback."""
    rootless = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return subprocess.run(
        ["unshare", *rootless, "--net", sys.executable, "-m", "sevkit", *map(str, words)],
        env={**os.environ, "SEVKIT_STORE": str(store)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_lock_pins_every_source_and_the_kernel_configuration(
    sevkit: Sevkit, locked: Path
) -> None:
    text = (locked / "recipes" / f"{RECIPE}.lock").read_text()
    lock = json.loads(text)
    sources = {row["source"]: row["pins"] for row in lock["requests"]}
    assert set(sources) == {"linux", "ovmf", "debs:agent", "debs:initramfs"}
    for pins in sources.values():
        for pin in pins:
            assert re.fullmatch("blob:[0-9a-f]{64}", pin["reference"])
            assert pin["origin"]["version"]
    config = (locked / "recipes" / f"{RECIPE}-6.12.config").read_text()
    assert "CONFIG_AMD_MEM_ENCRYPT=y" in config
    assert str(locked) not in text + config
    again = sevkit("-C", locked, "lock", RECIPE)
    assert again.stdout.startswith("locked: ")
    assert (locked / "recipes" / f"{RECIPE}.lock").read_text() == text
    early = sevkit("-C", locked, "build", RECIPE, "-n", "--locked", "kernel_series=6.1")
    assert early.returncode == 2
    other = sevkit(*hint_of(early))
    assert other.returncode == 0, other.stderr
    assert (locked / "recipes" / f"{RECIPE}-6.1.config").is_file()
    for words in ((), ("kernel_series=6.1",)):
        planned = sevkit("-C", locked, "build", RECIPE, "-n", "--locked", *words)
        assert planned.returncode == 0, planned.stderr


def test_each_value_of_a_variable_has_a_configuration_of_its_own(
    sevkit: Sevkit, project: Path
) -> None:
    recipe = project / "recipes" / "two.toml"
    recipe.write_text(
        f'schema = 1\nextends = "{RECIPE}"\nname = "two"\n\n'
        '[vars]\nplacement = "separate"\npacking = "zstd"\n\n'
        '[initramfs]\nplacement = "{{ placement }}"\ncompression = "{{ packing }}"\n'
    )
    choices = ((), ("packing=gzip",), ("placement=builtin",))

    def held(number: int) -> bool:
        planned = sevkit("-C", project, "build", "two", "-n", "--locked", *choices[number])
        return planned.returncode == 0

    def locked(number: int) -> dict[str, str]:
        """The configurations after locking one choice."""
        answer = sevkit("-C", project, "lock", "two", *choices[number])
        assert answer.returncode == 0, answer.stderr
        return {path.name: path.read_text() for path in (project / "recipes").glob("two-*.config")}

    assert set(locked(0)) == {"two-6.12.config"}
    assert [held(number) for number in range(3)] == [True, False, False]
    assert set(locked(1)) == {"two-6.12.config"}
    first = locked(2)
    assert [held(number) for number in range(3)] == [True, True, True]
    plain, builtin = sorted(first, key=len)
    assert 'INITRAMFS_SOURCE="initramfs.cpio.zstd"' in first[builtin]
    assert 'INITRAMFS_SOURCE=""' in first[plain]

    edit(project / "kernel-configs" / "sev.config", "# CONFIG_SWAP is not set", "CONFIG_SWAP=y")
    locked(2)
    assert [held(number) for number in range(3)] == [False, False, True]
    locked(0)
    again = locked(1)
    assert [held(number) for number in range(3)] == [True, True, True]
    assert set(again) == {plain, builtin}
    assert all("CONFIG_SWAP=y" in text for text in again.values())


def test_what_is_not_as_it_was_locked_is_refused_by_name(sevkit: Sevkit, project: Path) -> None:
    lock = project / "recipes" / f"{RECIPE}.lock"
    config = project / "recipes" / f"{RECIPE}-6.12.config"
    recipe = project / "recipes" / f"{RECIPE}.toml"
    fragment = project / "kernel-configs" / "hardening.config"

    def refusal() -> str:
        result = sevkit("-C", project, "build", RECIPE, "-n", "--locked")
        assert result.returncode == 2, result.stdout + result.stderr
        assert f" lock {RECIPE}" in result.stderr
        return result.stderr

    good = sevkit("-C", project, "build", RECIPE, "-n", "--locked")
    assert good.returncode == 0, good.stderr
    for path, old, new, words in (
        (recipe, 'deb = "ovmf"', 'deb = "ovmf"\nsuite = "trixie"', "ovmf is not locked as"),
        (
            fragment,
            "CONFIG_RANDSTRUCT_NONE=y",
            "CONFIG_RANDSTRUCT_NONE=y\n",
            "configuration is locked",
        ),
        (config, "# CONFIG_SWAP is not set", "CONFIG_SWAP=y", "is not the configuration that"),
        (lock, '"schema": 1', '"schema": 2', "schema 2"),
        (lock, '"schema": 1', '"schema":1', "not as sevkit writes it"),
        (lock, f'"recipe": "{RECIPE}"', '"recipe": "other"', "the lock of other"),
        (lock, '"reference": "blob:', '"reference": "blob:../', "can't be used"),
    ):
        whole = path.read_text()
        edit(path, old, new)
        assert words in refusal()
        path.write_text(whole)
    lock.unlink()
    assert sevkit("-C", project, "lock", RECIPE).returncode == 0
    before = lock.read_text()
    edit(lock, '"schema": 1', '<<<<<<< HEAD\n "schema": 1')
    conflict = lock.read_text()
    kept = sevkit("-C", project, "lock", RECIPE)
    assert kept.returncode == 2
    assert "<<<<<<< HEAD" in kept.stderr
    assert f" lock {RECIPE} --update" in kept.stderr
    assert lock.read_text() == conflict
    anew = sevkit("-C", project, "lock", RECIPE, "--update")
    assert anew.returncode == 0, anew.stderr
    assert "it is written anew" in anew.stderr
    assert lock.read_text() == before

    lock.rename(project / "lock")
    assert "there is no" in refusal()
    (project / "lock").rename(lock)
    assert sevkit("-C", project, "build", RECIPE, "-n", "--locked").returncode == 0


def test_a_build_reads_the_lock_and_says_what_is_not_in_it(sevkit: Sevkit, project: Path) -> None:
    lock = project / "recipes" / f"{RECIPE}.lock"
    before = lock.read_bytes()
    edit(project / "recipes" / f"{RECIPE}.toml", 'deb = "ovmf"', 'deb = "ovmf"\nsuite = "trixie"')
    built = sevkit("-C", project, "build", f"{RECIPE}:firmware", "--ci")
    assert built.returncode == 0, built.stderr
    assert f"ovmf is not in {RECIPE}.lock" in built.stderr
    assert lock.read_bytes() == before


def test_what_was_fetched_is_built_without_network(
    sevkit: Sevkit, project: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    words = ("-C", project, "build", f"{RECIPE}:initramfs", "--locked", "--offline", "--ci")
    early = without_network(store, *words)
    assert early.returncode == 1
    assert hint_of(early)[-2:] == ["fetch", RECIPE]
    assert "Traceback" not in early.stderr
    environment = {"SEVKIT_STORE": str(store)}
    fetched = sevkit("-C", project, "fetch", RECIPE, "--locked", "--ci", env=environment)
    assert fetched.returncode == 0, fetched.stderr
    built = without_network(store, *words)
    assert built.returncode == 0, built.stderr


def test_a_vendored_folder_is_all_that_a_build_elsewhere_needs(
    sevkit: Sevkit, project: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "vendored"
    made = sevkit("-C", project, "vendor", folder, RECIPE, "--ci")
    assert made.returncode == 0, made.stderr
    twin = sevkit("-C", project, "vendor", tmp_path / "twin", RECIPE, "--ci")
    assert twin.returncode == 0, twin.stderr
    subprocess.run(["diff", "-r", folder, tmp_path / "twin"], check=True)
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder / "sources", check=True)
    assert sevkit("-C", project, "vendor", folder, RECIPE).returncode == 2
    command = f"sevkit -C . build {RECIPE} --locked --offline\n"
    assert command in (folder / "README.md").read_text()

    shutil.rmtree(project)
    for number, target in enumerate((f"{RECIPE}:initramfs", f"{RECIPE}:firmware")):
        words = ("-C", folder, "--output", tmp_path / "out", "build", target, "--locked")
        built = without_network(tmp_path / f"store-{number}", *words, "--offline", "--ci")
        assert built.returncode == 0, built.stderr
    planned = without_network(
        tmp_path / "store-9", "-C", folder, "build", RECIPE, "-n", "--locked", "--offline"
    )
    assert "kernel: never built" in planned.stdout

    [crun] = [
        pin["reference"].removeprefix("blob:")
        for row in json.loads((folder / "recipes" / f"{RECIPE}.lock").read_text())["requests"]
        for pin in row["pins"]
        if pin["name"].startswith("crun_")
    ]
    file = folder / "sources" / f"blob-{crun}"
    whole = file.read_bytes()
    for damage in (whole[:-1], b"", None):
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage)
        words = ("-C", folder, "--output", tmp_path / "out", "build", f"{RECIPE}:initramfs")
        refused = without_network(tmp_path / "store-d", *words, "--offline", "--ci")
        assert refused.returncode == 1
        assert f"blob-{crun} can't be used" in refused.stderr


def test_a_locked_package_that_has_left_the_mirror_is_told_with_what_is_there_now(
    sevkit: Sevkit, project: Path, tmp_path: Path
) -> None:
    """A version that never was stands for one that is no more."""
    lock = project / "recipes" / f"{RECIPE}.lock"
    text = lock.read_text()
    [name] = set(re.findall(r'"(ovmf_[^"]+\.deb)"', text))
    gone = "ovmf_2001.01-1_all.deb"
    digest = re.search(r'"reference": "blob:([0-9a-f]{64})"', text[text.rindex(name) :])
    assert digest is not None
    lock.write_text(
        text.replace(name, gone)
        .replace(digest[1], "0" * 64)
        .replace(f"/{name.partition('_')[0]}_", "/ovmf_")
        .replace(re.search(r'"path": "([^"]*/e/edk2/)[^"]*"', text)[1] + name, "gone")  # type: ignore[index]
    )
    environment = {"SEVKIT_STORE": str(tmp_path / "store")}
    words = ("build", f"{RECIPE}:firmware", "--locked", "--ci")
    refused = sevkit("-C", project, *words, env=environment)
    assert refused.returncode == 1, refused.stderr
    assert f"{gone} is locked and has left the mirror" in refused.stderr
    assert f"there is {name}" in refused.stderr
    fetched = sevkit("-C", project, "fetch", RECIPE, "--locked", "--ci", env=environment)
    assert f"{gone} is locked and has left the mirror" in fetched.stderr
    assert "sevkit update" not in fetched.stderr
    moved = sevkit(*hint_of(refused), env=environment)
    assert moved.returncode == 0, moved.stderr
    assert f"ovmf: {gone} is out" in moved.stdout
    assert sevkit("-C", project, *words, env=environment).returncode == 0


def test_a_kernel_source_that_has_left_the_mirror_is_told_by_every_verb_that_needs_it(
    sevkit: Sevkit, project: Path, tmp_path: Path
) -> None:
    lock = project / "recipes" / f"{RECIPE}.lock"
    record = json.loads(lock.read_text())
    [row] = [row for row in record["requests"] if row["request"].get("deb") == LINUX]
    now = row["pins"][0]["name"]
    gone = {"name": "linux-source-6.12_2001.01-1_all.deb", "reference": "blob:" + "0" * 64}
    row["pins"][0] |= gone
    row["pins"][0]["origin"]["path"] = "gone"
    lock.write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    environment = {"SEVKIT_STORE": str(tmp_path / "store")}
    for verb in (("kconfig", "why", "SWIOTLB"), ("check",), ("lock",)):
        refused = sevkit("-C", project, *verb, RECIPE, env=environment)
        assert refused.returncode == 1, refused.stderr
        assert f"{gone['name']} is locked and has left the mirror" in refused.stderr
        assert f"there is {now}" in refused.stderr
        assert hint_of(refused)[-3:] == ["lock", RECIPE, "--update"]
    lock.unlink()
    request = DebSource.model_validate(
        {key: row["request"][key] for key in ("deb", "suite", "version")}
    )
    PinMemory(tmp_path / "store" / "pins").remember(request, [Pin(**row["pins"][0])])
    answered = sevkit("-C", project, "kconfig", "why", "SWIOTLB", RECIPE, env=environment)
    assert answered.returncode == 0, answered.stderr
    assert f"{gone['name']} has left the mirror; looking for what replaced it" in answered.stderr


def test_a_cache_key_changes_with_every_input_and_with_nothing_else(
    sevkit: Sevkit, project: Path, tmp_path: Path
) -> None:
    def key(*words: str, store: str = "empty") -> str:
        result = sevkit(
            *("-C", project, "cache-key", RECIPE, *words),
            env={"SEVKIT_STORE": str(tmp_path / store)},
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.splitlines()[0]

    first = key()
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert key("--files", store="another") == first
    (project / "notes.txt").write_text("of no build")
    (project / "kernel-configs" / "unused.config").write_text("# U.\nCONFIG_SWAP=y\n")
    assert key() == first
    seen = {first, key("kernel_series=6.1")}
    for path, old, new in (
        ("agent/version.h", 'VERSION "', 'VERSION "x'),
        ("kernel-configs/base.config", "CONFIG_EXPERT=y", "CONFIG_EXPERT=y\n"),
        (f"recipes/{RECIPE}.toml", 'deb = "ovmf"', 'deb = "ovmf"\nsuite = "trixie"'),
        ("recipes/sev-guest.toml", '"quiet"]', '"quiet", "audit=0"]'),
        (f"recipes/{RECIPE}-6.12.config", "# CONFIG_SWAP is not set", "CONFIG_SWAP=y"),
    ):
        whole = (project / path).read_text()
        edit(project / path, old, new)
        if path.endswith("6.12.config"):
            assert sevkit("-C", project, "build", RECIPE, "-n", "--locked").returncode == 2
        else:
            seen.add(key())
        (project / path).write_text(whole)
    assert key() == first
    assert len(seen) == 6
