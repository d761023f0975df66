# SPDX-License-Identifier: Apache-2.0
"""What a guest's loader would load: search order, links, platforms, notes, binding."""

from pathlib import Path

import pytest
from elf_samples import LOADER, a_loader, an_elf

from sevkit.errors import BuildError
from sevkit.rootfs.cpio import Entry, File, Symlink
from sevkit.rootfs.loader import FolderTree, closure, resolve, verify
from sevkit.stages.initramfs import ArchiveTree

LIB = "/lib/x86_64-linux-gnu"
USR_LIB = "/usr/lib/x86_64-linux-gnu"


def a_root(tmp_path: Path, files: dict[str, bytes | str]) -> FolderTree:
    """A folder of files (bytes) and symbolic links (text), with a loader in it."""
    root = tmp_path / "root"
    for path, content in {LOADER: a_loader(), **files}.items():
        place = Path(f"{root}{path}")
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            place.symlink_to(content)
        else:
            place.write_bytes(content)
    return FolderTree(root, {})


def a_program(**fields: object) -> bytes:
    return an_elf(interpreter=LOADER, **fields)  # type: ignore[arg-type]


def loaded(tree: FolderTree, *roots: str) -> set[str]:
    return set(closure(tree, roots or ("/app",)).files) - {LOADER, "/app"}


def test_libraries_of_libraries_come_along_with_their_chain(tmp_path: Path) -> None:
    tree = a_root(
        tmp_path,
        {
            "/app": a_program(needed=["liba.so.1"]),
            f"{USR_LIB}/liba.so.1": "liba.so.1.5",
            f"{USR_LIB}/liba.so.1.5": an_elf(soname="liba.so.1", needed=["libb.so"]),
            f"{LIB}/libb.so": an_elf(soname="libb.so"),
        },
    )
    found = closure(tree, ["/app"])
    a_step = f"liba.so.1 → {USR_LIB}/liba.so.1.5"
    assert found.files == {
        "/app": ("/app",),
        LOADER: ("/app", LOADER),
        f"{USR_LIB}/liba.so.1.5": ("/app", a_step),
        f"{LIB}/libb.so": ("/app", a_step, f"libb.so → {LIB}/libb.so"),
    }
    assert set(found.symlinks) == {f"{USR_LIB}/liba.so.1"}


def test_the_shortest_chain_is_told(tmp_path: Path) -> None:
    tree = a_root(
        tmp_path,
        {
            "/far": a_program(needed=["liba.so"]),
            "/near": a_program(needed=["libb.so"]),
            "/lib/liba.so": an_elf(needed=["libb.so"]),
            "/lib/libb.so": an_elf(),
        },
    )
    chains = closure(tree, ["/far", "/near"]).files
    assert chains["/lib/libb.so"] == ("/near", "libb.so → /lib/libb.so")
    assert chains["/lib/liba.so"][0] == "/far"


def test_folders_are_searched_in_the_loaders_order(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        f"{folder}/liba.so": an_elf() for folder in (LIB, "/usr/lib", "/r")
    }
    tree = a_root(tmp_path / "1", files | {"/app": a_program(needed=["liba.so"])})
    assert loaded(tree) == {f"{LIB}/liba.so"}
    tree = a_root(tmp_path / "2", files | {"/app": a_program(needed=["liba.so"], runpath="/r")})
    assert loaded(tree) == {"/r/liba.so"}
    tree = a_root(tmp_path / "3", files | {"/app": a_program(needed=["liba.so"], rpath="/r")})
    assert loaded(tree) == {"/r/liba.so"}


def test_rpath_reaches_the_libraries_libraries_and_runpath_does_not(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "/r/liba.so": an_elf(needed=["libb.so"]),
        "/r/libb.so": an_elf(),
        "/lib/libb.so": an_elf(),
    }
    tree = a_root(tmp_path / "1", files | {"/app": a_program(needed=["liba.so"], rpath="/r")})
    assert loaded(tree) == {"/r/liba.so", "/r/libb.so"}
    tree = a_root(tmp_path / "2", files | {"/app": a_program(needed=["liba.so"], runpath="/r")})
    assert loaded(tree) == {"/r/liba.so", "/lib/libb.so"}
    files["/r/liba.so"] = an_elf(needed=["libb.so"], runpath="/elsewhere")
    tree = a_root(tmp_path / "3", files | {"/app": a_program(needed=["liba.so"], rpath="/r")})
    assert loaded(tree) == {"/r/liba.so", "/lib/libb.so"}


@pytest.mark.parametrize("word", ["$ORIGIN/../p", "${ORIGIN}/../p", "/opt/p", "/$LIB/../../opt/p"])
def test_tokens_are_expanded(tmp_path: Path, word: str) -> None:
    tree = a_root(
        tmp_path,
        {"/opt/bin/app": a_program(needed=["liba.so"], runpath=word), "/opt/p/liba.so": an_elf()},
    )
    assert "/opt/p/liba.so" in loaded(tree, "/opt/bin/app")


def test_a_library_that_is_loaded_already_is_not_looked_for_again(tmp_path: Path) -> None:
    tree = a_root(
        tmp_path,
        {
            "/app": a_program(needed=["liba.so.1", "libb.so"], runpath="/r"),
            "/r/liba.so.1": an_elf(soname="liba.so.1"),
            f"{LIB}/liba.so.1": an_elf(soname="liba.so.1"),
            f"{LIB}/libb.so": an_elf(needed=["liba.so.1"]),
        },
    )
    assert loaded(tree) == {"/r/liba.so.1", f"{LIB}/libb.so"}


def test_links_stay_inside_the_root(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"host")
    root = tmp_path / "root"
    for folder in ("usr/lib", "opt/there", "lib64"):
        (root / folder).mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "usr/lib/liba.so").symlink_to("/opt/real/liba.so")
    (root / "opt/real").symlink_to("../../../../../opt/there")
    (root / "opt/there/liba.so").write_bytes(an_elf())
    (root / "lib64/ld-linux-x86-64.so.2").write_bytes(a_loader())
    (root / "app").write_bytes(a_program(needed=["liba.so"]))
    (root / "out").symlink_to("../secret")
    (root / "out2").symlink_to(f"{tmp_path}/secret")
    (root / "loop").symlink_to("/loop/x")
    tree = FolderTree(root, {})
    found = closure(tree, ["/app"])
    assert "/opt/there/liba.so" in found.files
    assert set(found.symlinks) == {"/lib", "/usr/lib/liba.so", "/opt/real"}
    assert resolve(tree, "/out") is None
    assert resolve(tree, "/out2") is None
    assert resolve(tree, "/loop") is None


def test_a_missing_library_is_named_with_the_way_to_it(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "/app": a_program(needed=["liba.so"]),
        "/lib/liba.so": an_elf(needed=["libgone.so.3"]),
    }
    with pytest.raises(BuildError) as caught:
        closure(a_root(tmp_path / "1", files), ["/app"])
    assert caught.value.what == "/lib/liba.so needs libgone.so.3, which is not there"
    assert caught.value.why == "by way of /app → liba.so"
    assert loaded(a_root(tmp_path / "2", files | {"/lib/libgone.so.3": an_elf()}))


def test_a_library_for_another_machine_is_passed_over_as_the_loader_does(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "/app": a_program(needed=["liba.so"]),
        f"{LIB}/liba.so": an_elf(machine=183),
    }
    with pytest.raises(BuildError, match=r"needs liba\.so") as caught:
        closure(a_root(tmp_path / "1", files), ["/app"])
    assert caught.value.why == f"{LIB}/liba.so is for 64-bit AArch64, not 64-bit x86-64"
    files["/usr/lib/liba.so"] = an_elf()
    assert loaded(a_root(tmp_path / "2", files)) == {"/usr/lib/liba.so"}


def test_a_program_for_another_machine_is_refused(tmp_path: Path) -> None:
    tree = a_root(tmp_path, {"/app": a_program(), "/arm": a_program(machine=183)})
    assert loaded(tree) == set()
    with pytest.raises(BuildError, match="/arm is for 64-bit AArch64"):
        closure(tree, ["/arm"])


def test_a_library_that_is_not_elf_is_refused_by_name(tmp_path: Path) -> None:
    tree = a_root(tmp_path, {"/app": a_program(needed=["liba.so"]), "/lib/liba.so": b"GROUP ( )"})
    with pytest.raises(BuildError, match=r"/lib/liba\.so is not an ELF file"):
        closure(tree, ["/app"])


def test_a_missing_interpreter_is_refused(tmp_path: Path) -> None:
    tree = a_root(tmp_path, {"/app": an_elf(interpreter="/lib/ld-other.so.1")})
    with pytest.raises(BuildError, match=r"/app needs /lib/ld-other\.so\.1, which is not there"):
        closure(tree, ["/app"])


def test_dlopen_notes_bring_what_is_required_and_recommended(tmp_path: Path) -> None:
    notes = [
        {"soname": ["libreq.so.9", "libreq.so.1"], "priority": "required"},
        {"soname": ["librec.so.1"], "priority": "recommended"},
        {"soname": ["librec-gone.so.1"], "priority": "recommended"},
        {"soname": ["libsug.so.1"], "priority": "suggested"},
    ]
    files: dict[str, bytes | str] = {
        "/app": a_program(needed=["liba.so"]),
        "/lib/liba.so": an_elf(dlopens=notes),
        "/lib/libreq.so.1": an_elf(needed=["libdeep.so"]),
        "/lib/librec.so.1": an_elf(),
        "/lib/libsug.so.1": an_elf(),
        "/lib/libdeep.so": an_elf(),
    }
    found = closure(a_root(tmp_path / "1", files), ["/app"])
    assert set(found.files) - {"/app", LOADER} == {
        *("/lib/liba.so", "/lib/libreq.so.1", "/lib/librec.so.1", "/lib/libdeep.so")
    }
    assert found.files["/lib/libreq.so.1"][-1] == "dlopen libreq.so.1 → /lib/libreq.so.1"
    assert found.absent == ["/lib/liba.so recommends librec-gone.so.1"]
    del files["/lib/libreq.so.1"]
    with pytest.raises(BuildError, match=r"needs libreq\.so\.9 or libreq\.so\.1 \(by dlopen\)"):
        closure(a_root(tmp_path / "2", files), ["/app"])


def test_a_script_brings_its_interpreter(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "/init": b"#! /bin/sh -e\nexec true\n",
        "/bin/sh": "shell",
        "/bin/shell": a_program(needed=["libc.so"]),
        "/lib/libc.so": an_elf(),
    }
    found = closure(a_root(tmp_path / "1", files), ["/init"])
    assert found.files["/lib/libc.so"] == (
        *("/init", "#!/bin/sh → /bin/shell", "libc.so → /lib/libc.so"),
    )
    assert "/bin/sh" in found.symlinks
    del files["/bin/sh"]
    with pytest.raises(BuildError, match="/init needs /bin/sh, which is not there"):
        closure(a_root(tmp_path / "2", files), ["/init"])


def test_scripts_that_need_one_another_are_refused(tmp_path: Path) -> None:
    tree = a_root(tmp_path, {"/a": b"#!/b\n", "/b": b"#!/a\n"})
    with pytest.raises(BuildError, match="scripts that need one another"):
        closure(tree, ["/a"])


# --- verify ------------------------------------------------------------------------------------


def an_archive(**extra: bytes) -> list[Entry]:
    files = {
        LOADER: a_loader(),
        "/app": a_program(
            needed=["liba.so.1"], wants={"liba.so.1": ["A_1"]}, imports=["f@A_1", "g"]
        ),
        "/lib/liba.so.1": an_elf(soname="liba.so.1", defines=["A_1"], exports=["f@A_1", "g"]),
        **extra,
    }
    return [File(path=path, data=data, mode=0o755) for path, data in files.items()]


def test_an_archive_that_is_whole_passes() -> None:
    verify(ArchiveTree(an_archive()))


@pytest.mark.parametrize(
    ("path", "data", "lack"),
    [
        ("/lib/liba.so.1", b"text", "is not an ELF file"),
        ("/lib/liba.so.1", an_elf(machine=183), "for 64-bit AArch64"),
        ("/other", a_program(needed=["libgone.so"]), "/other needs libgone.so"),
        ("/plugin.so", an_elf(needed=["libgone.so"]), "/plugin.so needs libgone.so"),
        ("/script", b"#!/bin/gone\n", "/script needs /bin/gone"),
        (
            "/lib/liba.so.1",
            an_elf(defines=["A_2"], exports=["f@A_2", "g"]),
            "/app needs version A_1 of liba.so.1, but /lib/liba.so.1 does not define it",
        ),
        (
            "/lib/liba.so.1",
            an_elf(defines=["A_1"], exports=["f@A_1"]),
            "/app needs the symbol g, which nothing that is loaded defines",
        ),
        (
            "/lib/liba.so.1",
            an_elf(defines=["A_1", "A_2"], exports=["f@A_2", "g"]),
            "/app needs the symbol f@A_1, which nothing that is loaded defines",
        ),
    ],
)
def test_an_archive_that_would_not_run_is_refused(path: str, data: bytes, lack: str) -> None:
    with pytest.raises(BuildError, match="would not run") as caught:
        verify(ArchiveTree(an_archive(**{path: data})))
    assert lack in caught.value.why


def test_an_interpreter_that_is_not_executable_is_refused() -> None:
    entries = [entry for entry in an_archive() if entry.path != LOADER]
    entries.append(File(path=LOADER, data=a_loader(), mode=0o644))
    with pytest.raises(BuildError, match="would not run") as caught:
        verify(ArchiveTree(entries))
    assert caught.value.why == f"/app is started by {LOADER}, which is not executable"


def test_a_weak_symbol_may_be_missing() -> None:
    verify(ArchiveTree(an_archive(**{"/weak": a_program(weak_imports=["nowhere"])})))


def test_object_files_and_text_are_left_alone() -> None:
    module = an_elf(kind=1, needed=["libgone.so"])
    verify(ArchiveTree(an_archive(**{"/m.ko": module, "/text": b"text"})))


def test_a_link_into_nothing_does_not_satisfy() -> None:
    entries = [entry for entry in an_archive() if entry.path != "/lib/liba.so.1"]
    entries.append(Symlink(path="/lib/liba.so.1", target="/usr/lib/liba.so.1"))
    with pytest.raises(BuildError, match="would not run"):
        verify(ArchiveTree(entries))
