# SPDX-License-Identifier: Apache-2.0
"""The stages sysroot, agent and initramfs, with real packages, a real compiler and the sandbox."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sevkit.canonical import sha256_of
from sevkit.errors import BuildError
from sevkit.recipe.model import Recipe
from sevkit.rootfs import cpio
from sevkit.rootfs.contents import why
from sevkit.sandbox import Processes, SandboxRunner
from sevkit.stage import Stage
from sevkit.stages.agent import build_agent, plan_agent
from sevkit.stages.initramfs import build_initramfs, plan_initramfs
from sevkit.stages.sysroot import build_sysroot, plan_sysroot
from sevkit.store.listing import list_tree, tree_digest

LIB = "/usr/lib/x86_64-linux-gnu"
LOADER = "/lib64/ld-linux-x86-64.so.2"


# --- scaffolding: a planner and a builder without an engine -------------------------------------


class Workshop:
    """Plans and builds the three stages of one recipe in a folder."""

    def __init__(self, folder: Path, debs: Mapping[str, Sequence[Path]]):
        self.folder = folder
        self.packages = debs
        self.recipe: Recipe = a_recipe()
        self.places: dict[str, Path] = {}
        self.built: dict[str, Stage] = {}

    # what plan functions ask

    def source(self, name: str) -> str:
        return self.local(self.recipe.sources[name].file)  # type: ignore[union-attr]

    def debs(self, group: str) -> Mapping[str, str]:
        return {deb.name: self.local(deb) for deb in self.packages[group]}

    def local(self, path: Path, *, leave_out: Collection[str] = ()) -> str:
        if path.is_dir():
            reference = f"tree:{tree_digest(list_tree(path, leave_out=leave_out))}"
        else:
            reference = f"blob:{sha256_of(path)}"
        self.places[reference] = path
        return reference

    def stage(self, name: str) -> str:
        return self.built[name].reference

    def tool(self, name: str) -> str:
        answer = subprocess.run([name, "--version"], capture_output=True, text=True, check=True)
        return answer.stdout.partition("\n")[0]

    # building

    def build(self, stage: Stage, function: Callable[..., None], *, jobs: int = 2) -> Path:
        place = self.folder / f"{stage.name}-{len(list(self.folder.iterdir()))}"
        (place / "work").mkdir(parents=True)
        (place / "out").mkdir()
        inputs = {role: self.places[reference] for role, reference in stage.inputs.items()}
        run = SandboxRunner(
            title=stage.name,
            work=place / "work",
            inputs=inputs,
            log=place / "log",
            jobs=jobs,
            confined=True,
            processes=Processes(),
            on_progress=lambda done, total, note: None,
        )
        (place / "log").touch()
        function(stage, inputs, place / "out", run)
        self.places[stage.reference] = place / "out"
        self.built[stage.name] = stage
        return place / "out"

    def all(self, recipe: Recipe, **build: Any) -> Path:
        """Build what `recipe` says and return the initramfs stage's output."""
        self.recipe = recipe
        if recipe.initramfs.debs:
            self.build(plan_sysroot(self, "initramfs"), build_sysroot)  # type: ignore[arg-type]
        if recipe.agent.path is not None:
            self.build(plan_sysroot(self, "agent"), build_sysroot)  # type: ignore[arg-type]
        self.build(plan_agent(self), build_agent)  # type: ignore[arg-type]
        return self.build(plan_initramfs(self), build_initramfs, **build)  # type: ignore[arg-type]


def a_recipe(
    *,
    agent: Mapping[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
    sources: Mapping[str, Any] | None = None,
    **initramfs: Any,
) -> Recipe:
    return Recipe.model_validate(
        {
            "schema": 1,
            "name": "made-up",
            "version": "1.0.0",
            "sources": {"linux": {"file": Path("/none")}, **(sources or {})},
            "kernel": {"source": "linux", "configs": ("base",)},
            "agent": agent or {"source": "linux"},
            "initramfs": {"max_size": 14 << 20, "level": 1, "files": files or {}, **initramfs},
            "firmware": {"source": "linux"},
        }
    )


def a_deb(
    folder: Path, name: str, files: Mapping[str, bytes | str], version: str = "1.0-1"
) -> Path:
    """A package made by dpkg-deb; a text is a symbolic link."""
    tree = folder / f"{name}-tree"
    (tree / "DEBIAN").mkdir(parents=True)
    control = {
        "Package": name,
        "Version": version,
        "Architecture": "amd64",
        "Maintainer": "A <a@example.org>",
        "Description": "made up",
    }
    lines = "".join(f"{key}: {value}\n" for key, value in control.items())
    (tree / "DEBIAN/control").write_text(lines)
    for path, content in files.items():
        place = Path(f"{tree}{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            place.symlink_to(content)
        else:
            place.write_bytes(content)
            place.chmod(0o755 if "bin/" in path or "/ld-" in path else 0o644)
    deb = folder / f"{name}_{version}_amd64.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, deb]
    subprocess.run(command, check=True, capture_output=True)
    return deb


def compiled(folder: Path, name: str, text: str, *options: str) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.c").write_text(text)
    command = ["gcc", "-o", str(folder / name), str(folder / f"{name}.c"), *options]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / name).read_bytes()


@pytest.fixture(scope="module")
def libc_deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This machine's C library and headers, as a package of the layout before merged /usr."""
    files: dict[str, bytes | str] = {}
    for name in ("libc.so.6", "ld-linux-x86-64.so.2"):
        files[f"/lib/x86_64-linux-gnu/{name}"] = Path(f"{LIB}/{name}").read_bytes()
    files[LOADER] = "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    for name in ("crt1.o", "Scrt1.o", "crti.o", "crtn.o", "libc_nonshared.a", "libc.so"):
        files[f"{LIB}/{name}"] = Path(f"{LIB}/{name}").read_bytes()
    for folder in ("", "bits", "bits/types", "sys", "gnu", "linux", "asm", "asm-generic"):
        for base in (Path("/usr/include"), Path("/usr/include/x86_64-linux-gnu")):
            for header in (base / folder).glob("*.h"):
                files[str(header)] = header.read_bytes()
    files["/usr/share/doc/libc/copyright"] = b"See /usr/share/common-licenses/LGPL-2.1.\n"
    return a_deb(tmp_path_factory.mktemp("libc"), "libc", files)


@pytest.fixture
def app_deb(tmp_path: Path) -> Path:
    library = compiled(
        tmp_path / "c",
        "libhi.so.1",
        "int hi(void) { return 7; }",
        "-shared",
        "-fPIC",
        "-Wl,-soname,libhi.so.1",
    )
    app = compiled(
        *(tmp_path / "c", "app", "int hi(void); int main(void) { return hi(); }"),
        *("-Wl,--no-as-needed", str(tmp_path / "c/libhi.so.1")),
    )
    copyright_text = (
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"
        "Files: *\nCopyright: A\nLicense: Expat\n"
    )
    return a_deb(
        tmp_path,
        "app",
        {
            "/usr/bin/app": app,
            "/usr/bin/app-link": "app",
            f"{LIB}/libhi.so.1": "libhi.so.1.0",
            f"{LIB}/libhi.so.1.0": library,
            "/usr/share/doc/app/copyright": copyright_text.encode(),
        },
    )


AGENT_MAKEFILE = """\
O ?= build
all: $(O)/tiny
$(O)/tiny: tiny.c
\tmkdir -p $(O)
\t$(CC) -g -O2 $(CFLAGS_EXTRA) $(LDFLAGS_EXTRA) -o $@ $<
"""
AGENT_TEXT = """\
// SPDX-License-Identifier: ISC
#include <stdio.h>
int main(void) { puts(__FILE__); return 3; }
"""


@pytest.fixture
def agent_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "an agent"
    folder.mkdir()
    (folder / "Makefile").write_text(AGENT_MAKEFILE)
    (folder / "tiny.c").write_text(AGENT_TEXT)
    return folder


@pytest.fixture
def workshop(tmp_path: Path, libc_deb: Path, app_deb: Path) -> Workshop:
    (tmp_path / "build place").mkdir()
    debs = {"initramfs": [libc_deb, app_deb], "agent": [libc_deb]}
    return Workshop(tmp_path / "build place", debs)


def an_ordinary_recipe(agent_folder: Path, **fields: Any) -> Recipe:
    chosen = {"debs": ("app",), "binaries": ("/usr/bin/app",), **fields}
    return a_recipe(agent={"path": agent_folder, "binary": "tiny"}, **chosen)


def entries_of(out: Path, tmp_path: Path) -> dict[str, cpio.Entry]:
    plain = tmp_path / "plain.cpio"
    with plain.open("wb") as file:
        subprocess.run(["zstd", "-dc", out / "initramfs"], check=True, stdout=file)
    return {entry.path: entry for entry in cpio.read(plain)}


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in json.loads((out / "contents.json").read_bytes())["paths"]}


# --- the whole ----------------------------------------------------------------------------------


def test_agent_binary_and_libraries_are_in_the_archive_with_an_account(
    workshop: Workshop, agent_folder: Path, tmp_path: Path
) -> None:
    out = workshop.all(an_ordinary_recipe(agent_folder))
    entries, rows = entries_of(out, tmp_path), rows_of(out)
    assert entries.keys() == rows.keys()
    assert {path for path, entry in entries.items() if isinstance(entry, cpio.File)} == {
        *("/init", "/usr/bin/app", f"{LIB}/libhi.so.1.0", f"{LIB}/libc.so.6"),
        *(f"{LIB}/ld-linux-x86-64.so.2", "/etc/sevkit-release"),
    }
    assert entries["/lib64"] == cpio.Symlink(path="/lib64", target="usr/lib64")
    assert entries["/usr/lib64/ld-linux-x86-64.so.2"] == cpio.Symlink(
        path="/usr/lib64/ld-linux-x86-64.so.2",
        target="../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    )
    assert entries["/dev/console"] == cpio.Node(
        path="/dev/console", kind="char", major=5, minor=1, mode=0o600
    )
    assert entries["/tmp"] == cpio.Directory(path="/tmp", mode=0o1777)
    app = rows["/usr/bin/app"]
    assert (app["package"], app["version"], app["licence"]) == ("app", "1.0-1", "MIT")
    assert rows["/init"]["licence"] == "ISC"
    assert rows[f"{LIB}/libc.so.6"]["licence"] == "see copyright (LGPL-2.1)"
    assert rows[f"{LIB}/libhi.so.1.0"]["chain"] == [
        "/usr/bin/app",
        f"libhi.so.1 → {LIB}/libhi.so.1.0",
    ]
    assert why(json.loads((out / "contents.json").read_bytes()), LOADER)[-1].startswith("   ")
    facts = json.loads((out / "initramfs.json").read_bytes())
    assert facts["sha256"] == hashlib.sha256((out / "initramfs").read_bytes()).hexdigest()
    assert facts["size"] == (out / "initramfs").stat().st_size
    release = entries["/etc/sevkit-release"]
    assert isinstance(release, cpio.File)
    assert bytes(release.data) == b'NAME="made-up"\nVERSION="1.0.0"\nVARIANT="production"\n'


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot is for root")
def test_the_unpacked_archive_runs_in_itself(
    workshop: Workshop, agent_folder: Path, tmp_path: Path
) -> None:
    out = workshop.all(an_ordinary_recipe(agent_folder))
    root = tmp_path / "root"
    root.mkdir()
    command = f"zstd -dc '{out}/initramfs' | cpio --quiet -id"
    subprocess.run(["sh", "-ec", command], cwd=root, check=True)
    answer = subprocess.run(["chroot", root, "/init"], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (3, "tiny.c\n")
    assert subprocess.run(["chroot", root, "/usr/bin/app"], check=False).returncode == 7


def test_umask_folder_order_place_and_jobs_change_nothing(
    libc_deb: Path, app_deb: Path, agent_folder: Path, tmp_path: Path
) -> None:
    results = []
    for number, mask in enumerate((0o022, 0o077)):
        place = tmp_path / f"place {number}" / ("deeper" * number)
        place.mkdir(parents=True)
        debs = [libc_deb, app_deb] if number else [app_deb, libc_deb]
        old = os.umask(mask)
        try:
            workshop = Workshop(place, {"initramfs": debs, "agent": [libc_deb]})
            out = workshop.all(an_ordinary_recipe(agent_folder), jobs=1 + number)
        finally:
            os.umask(old)
        results.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert results[0] == results[1]


def test_hard_links_of_a_package_stay_one_file(
    workshop: Workshop, agent_folder: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked"
    deb = a_deb(linked, "linked", {"/usr/bin/one": Path("/usr/bin/env").read_bytes()})
    os.link(linked / "linked-tree/usr/bin/one", linked / "linked-tree/usr/bin/two")
    subprocess.run(["dpkg-deb", "-b", linked / "linked-tree", deb], check=True, capture_output=True)
    workshop.packages = {**workshop.packages, "initramfs": [*workshop.packages["initramfs"], deb]}
    recipe = an_ordinary_recipe(agent_folder, binaries=("/usr/bin/one", "/usr/bin/two"))
    out = workshop.all(recipe)
    one = entries_of(out, tmp_path)["/usr/bin/one"]
    assert isinstance(one, cpio.File)
    assert one.links == ("/usr/bin/two",)
    assert rows_of(out)["/usr/bin/two"]["same_as"] == "/usr/bin/one"


def test_the_recipes_files_come_with_what_they_need(
    workshop: Workshop, agent_folder: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    (tree / "empty").mkdir(parents=True)
    (tree / "note").write_text("hello")
    (tree / "link").symlink_to("note")
    tool = tmp_path / "tool"
    text = "int hi(void); int main(void) { return hi(); }"
    tool.write_bytes(compiled(tmp_path / "c2", "tool", text, str(tmp_path / "c/libhi.so.1")))
    tool.chmod(0o755)
    files = {"/opt/data": tree, "/lib/tool": tool}
    recipe = a_recipe(
        agent={"path": agent_folder, "binary": "tiny"}, files=files, debs=("app",), binaries=()
    )
    out = workshop.all(recipe)
    entries, rows = entries_of(out, tmp_path), rows_of(out)
    assert entries["/opt/data/link"] == cpio.Symlink(path="/opt/data/link", target="note")
    assert entries["/opt/data/empty"] == cpio.Directory(path="/opt/data/empty")
    assert rows["/opt/data/empty"]["origin"] == "recipe"
    moved = entries["/usr/lib/tool"]  # /lib is a link
    assert isinstance(moved, cpio.File)
    assert moved.mode == 0o755
    assert rows[f"{LIB}/libhi.so.1.0"]["chain"][0] == "/usr/lib/tool"


# --- the agent's three forms --------------------------------------------------------------------


def test_a_script_in_a_source_becomes_init_with_its_interpreter(
    workshop: Workshop, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/app\n")
    recipe = a_recipe(agent={"source": "own"}, sources={"own": {"file": script}}, debs=("app",))
    out = workshop.all(recipe)
    assert rows_of(out)["/usr/bin/app"]["chain"] == ["/init", "#!/usr/bin/app"]
    script.write_text("#!/usr/bin/gone\n")
    with pytest.raises(BuildError, match="/init needs /usr/bin/gone"):
        workshop.all(recipe)


def test_a_member_of_a_package_becomes_init(workshop: Workshop, app_deb: Path) -> None:
    recipe = a_recipe(
        agent={"source": "own", "member": "usr/bin/app"},
        sources={"own": {"file": app_deb}},
        debs=("app",),
    )
    assert f"{LIB}/libhi.so.1.0" in rows_of(workshop.all(recipe))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello", "neither an ELF program nor a script"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\xb7\0" + bytes(44), "for 64-bit AArch64"),
        (b"\x7fELF\x01\x01\x01" + bytes(9) + b"\x02\0\x03\0" + bytes(34), "for 32-bit x86"),
        (b"\x7fELF\x02\x01", "malformed ELF file"),
    ],
)
def test_an_agent_that_the_guest_could_not_run_is_refused(
    workshop: Workshop, tmp_path: Path, data: bytes, reason: str
) -> None:
    (tmp_path / "program").write_bytes(data)
    recipe = a_recipe(
        agent={"source": "own"}, sources={"own": {"file": tmp_path / "program"}}, debs=("app",)
    )
    with pytest.raises(BuildError, match=reason):
        workshop.all(recipe)


def test_an_agent_that_does_not_compile_shows_the_compilers_words(
    workshop: Workshop, agent_folder: Path
) -> None:
    (agent_folder / "tiny.c").write_text("int main(void) { return wrong; }")
    with pytest.raises(BuildError, match="make failed") as caught:
        workshop.all(an_ordinary_recipe(agent_folder))
    assert "undeclared" in caught.value.why


def test_a_makefile_that_makes_another_program_is_named(
    workshop: Workshop, agent_folder: Path
) -> None:
    recipe = a_recipe(agent={"path": agent_folder, "binary": "huge"}, debs=("app",))
    with pytest.raises(BuildError, match="did not make huge"):
        workshop.all(recipe)


# --- what must not pass -------------------------------------------------------------------------


def test_over_budget_is_an_error_by_package_and_file(
    workshop: Workshop, agent_folder: Path
) -> None:
    with pytest.raises(BuildError, match=r"more than initramfs\.max_size") as caught:
        workshop.all(an_ordinary_recipe(agent_folder, max_size=1 << 20))
    assert "libc 1.0-1" in caught.value.why
    assert f"{LIB}/libc.so.6" in caught.value.why


def test_a_missing_library_is_named_with_the_fix(
    workshop: Workshop, agent_folder: Path, tmp_path: Path
) -> None:
    library = compiled(tmp_path / "c3", "libgone.so", "int gone(void) { return 0; }", "-shared")
    assert library
    text = "int gone(void); int main(void) { return gone(); }"
    app = compiled(tmp_path / "c3", "needy", text, str(tmp_path / "c3/libgone.so"), "-Wl,-soname,x")
    deb = a_deb(tmp_path / "needy", "needy", {"/usr/bin/needy": app})
    workshop.packages = {**workshop.packages, "initramfs": [*workshop.packages["initramfs"], deb]}
    with pytest.raises(BuildError, match=r"libgone\.so, which is not there") as caught:
        workshop.all(an_ordinary_recipe(agent_folder, binaries=("/usr/bin/needy",)))
    assert caught.value.hint == "add the Debian package that holds it to initramfs.debs"


def test_a_binary_that_no_package_holds_is_named_with_the_nearest(
    workshop: Workshop, agent_folder: Path
) -> None:
    with pytest.raises(
        BuildError, match=r"no package of initramfs\.debs holds /usr/sbin/app"
    ) as caught:
        workshop.all(an_ordinary_recipe(agent_folder, binaries=("/usr/sbin/app",)))
    assert "did you mean /usr/bin/app" in caught.value.what


def test_packages_with_different_files_at_one_path_are_refused(
    workshop: Workshop, agent_folder: Path, tmp_path: Path
) -> None:
    twin = a_deb(tmp_path / "twin", "twin", {"/usr/bin/app": b"#!/bin/true\n"})
    debs = workshop.packages["initramfs"]
    workshop.packages = {**workshop.packages, "initramfs": [*debs, twin]}
    with pytest.raises(BuildError, match="twin and app both hold /usr/bin/app"):
        workshop.all(an_ordinary_recipe(agent_folder))


def test_a_recipe_file_where_something_else_is_made_is_refused(
    workshop: Workshop, agent_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").write_text("x")
    files = {"/etc/sevkit-release": tmp_path / "other"}
    with pytest.raises(BuildError, match="/etc/sevkit-release is made by something else"):
        workshop.all(an_ordinary_recipe(agent_folder, files=files))


def test_packages_from_before_and_after_merged_usr_make_one_tree(tmp_path: Path) -> None:
    after = {"/lib": "usr/lib", "/usr/lib/new": b"n", "/usr/bin/tool": "/lib/new"}
    debs = [
        a_deb(tmp_path, "after", after),
        a_deb(tmp_path, "before", {"/lib/old": b"o", "/sbin/run": b"r"}),
    ]
    (tmp_path / "place").mkdir()
    workshop = Workshop(tmp_path / "place", {"initramfs": debs})
    out = workshop.build(plan_sysroot(workshop, "initramfs"), build_sysroot)  # type: ignore[arg-type]
    root = out / "root"
    assert {str(path.relative_to(root)) for path in root.rglob("*")} == {
        *("bin", "lib", "sbin", "usr", "usr/bin", "usr/lib", "usr/sbin"),
        *("usr/bin/tool", "usr/lib/new", "usr/lib/old", "usr/sbin/run"),
    }
    assert str((root / "usr/bin/tool").readlink()) == "../lib/new"
    assert (root / "sbin/run").read_bytes() == b"r"
    index = json.loads((out / "packages.json").read_bytes())
    assert index["paths"] == {
        "/usr/bin/tool": "after",
        "/usr/lib/new": "after",
        "/usr/lib/old": "before",
        "/usr/sbin/run": "before",
    }
