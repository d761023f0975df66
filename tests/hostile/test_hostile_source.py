# SPDX-License-Identifier: Apache-2.0
"""Sources that lay links for the sevkit outside of the sandbox: nothing out there is touched."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from firmware_samples import firmware
from hostile_archives import CONTROL, deb, tar

from sevkit.canonical import Json
from sevkit.errors import SevkitError
from sevkit.sandbox import Processes, SandboxRunner
from sevkit.stage import Stage
from sevkit.stages.agent import build_agent
from sevkit.stages.edk2 import build_edk2
from sevkit.stages.edk2_tools import build_edk2_tools
from sevkit.stages.kernel import build_kernel
from sevkit.stages.sysroot import build_sysroot

SECRET = b"a key that no image may ever hold\n"


class Bench:
    """A stage's folders, and beside them what is none of its business."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("work", "out", "input", "private", "leftovers"):
            (folder / name).mkdir()
        self.secrets = [folder / "secret", folder / "private" / "secret"]
        for path in self.secrets:
            path.write_bytes(SECRET)
            path.chmod(0o600)
        self.runner = self.a_runner({"in": folder / "input"})

    def a_runner(self, inputs: Mapping[str, Path]) -> SandboxRunner:
        return SandboxRunner(
            title="step",
            work=self.folder / "work",
            inputs=inputs,
            log=self.folder / "log",
            jobs=1,
            confined=True,
            processes=Processes(),
            on_progress=lambda done, total, note: None,
            leftovers=self.folder / "leftovers",
        )

    def clear(self) -> None:
        """Make the stage's folders empty, but for what it left for the next one."""
        for name in ("work", "out"):
            shutil.rmtree(self.folder / name)
            (self.folder / name).mkdir()

    def is_untouched(self) -> bool:
        """Whether all is as it was but for the stage's own folders, which hold no secret."""
        for path in self.secrets:
            assert path.read_bytes() == SECRET
            assert path.stat().st_mode & 0o777 == 0o600
        assert [path.name for path in (self.folder / "private").iterdir()] == ["secret"]
        held = [path for path in (self.folder / "out").rglob("*") if path.is_file()]
        assert not any(SECRET in path.read_bytes() for path in held)
        assert not any(path.is_symlink() for path in (self.folder / "out").rglob("*"))
        return True


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def built_or_refused(bench: Bench, build: Callable[[Path], None]) -> bool:
    """Whether it was built; anything but that or an error of sevkit's own is a failure."""
    try:
        build(bench.folder / "out")
    except SevkitError:
        assert bench.is_untouched()
        return False
    assert bench.is_untouched()
    return True


AGENT_TRICKS = [
    "true",
    "ln -sf {secret} ../../out/agent.json",
    "ln -sf {secret} ../../out/agent",
    "ln -sf {secret} ../agent",
    "ln -sf {secret} ../build/evil",
    "ln -sf {private}/secret ../build/evil",
    "rm -r ../build; ln -s {private} ../build",
    "rm ../build/evil; mkfifo ../build/evil",
    "rm ../build/evil; mkdir ../build/evil",
    "mv ../build ../elsewhere; ln -s elsewhere ../build",
]


def agent_of(bench: Bench, trick: str) -> None:
    source = bench.folder / "input" / "agent"
    source.mkdir()
    text = trick.format(secret=bench.secrets[0], private=bench.folder / "private")
    (source / "Makefile").write_text(f"all:\n\tcp /bin/true ../build/evil\n\t{text}\n")
    stage = Stage("agent", "agent", 1, {"binary": "evil"}, {})
    (bench.folder / "input" / "sysroot").mkdir()
    inputs = {"folder": source, "sysroot": bench.folder / "input" / "sysroot"}
    build_agent(stage, inputs, bench.folder / "out", bench.runner)


@pytest.mark.parametrize("trick", AGENT_TRICKS)
def test_an_agent_makes_its_own_program_and_touches_nothing_else(bench: Bench, trick: str) -> None:
    done = built_or_refused(bench, lambda _: agent_of(bench, trick))
    if trick in (AGENT_TRICKS[0], AGENT_TRICKS[-1]):
        assert done
        assert (bench.folder / "out" / "agent").read_bytes()[:4] == b"\x7fELF"


MAKEFILE = """\
VERSION = 6
PATCHLEVEL = 12
SUBLEVEL = 1
EXTRAVERSION =
allnoconfig:
\tcp $(KCONFIG_ALLCONFIG) .config
\t%s
bzImage:
\tmkdir -p arch/x86/boot/compressed include/config tools/x
\techo kernel > arch/x86/boot/bzImage
\techo kernel > arch/x86/boot/compressed/vmlinux.bin
\techo 6.12.1 > include/config/kernel.release
\t%s
"""
SOURCE_LINKS = [
    ".config",
    "demanded.config",
    ".sevkit-objects",
    "arch/x86/boot/bzImage",
    "Kconfig.evil",
    "../objects",
    "../objects.mk",
]
CONFIG_TRICKS = [
    "ln -sf {secret} .config",
    "rm .config; mkfifo .config",
    "rm .config; ln -s .config .config",
    "rm $(KCONFIG_ALLCONFIG); ln -s {secret} $(KCONFIG_ALLCONFIG)",
    "ln -s {secret} ../objects.mk",
    "ln -s {secret} ../kconfig-request.json; echo '# CONFIG_PCI is not set' > .config",
    "ln -s {secret} ../kconfig-answer.json; echo '# CONFIG_PCI is not set' > .config",
    "mkfifo ../kconfig-answer.json; echo '# CONFIG_PCI is not set' > .config",
    "printf '\\\\377' >> .config",
]
BUILD_TRICKS = [
    "ln -sf {secret} .config",
    "ln -sf {secret} arch/x86/boot/bzImage",
    "rm arch/x86/boot/bzImage; mkfifo arch/x86/boot/bzImage",
    "rm -r arch/x86/boot; ln -s {private} arch/x86/boot",
    "ln -sf {secret} arch/x86/boot/compressed/vmlinux.bin",
    "ln -sf {secret} include/config/kernel.release",
    "printf '\\\\377' > include/config/kernel.release",
    "ln -s {secret} .sevkit-objects",
    "ln -s {secret} ../objects",
    "ln -s {secret} tools/x/.y.cmd",
    "rm -r tools; ln -s {private} tools",
]


def kernel_tree(bench: Bench, on_config: str = "true", on_build: str = "true") -> Path:
    tree = bench.folder / "input" / "linux"
    tree.mkdir()
    places = {"secret": bench.secrets[0], "private": bench.folder / "private"}
    tricks = tuple(trick.format(**places) for trick in (on_config, on_build))
    (tree / "Makefile").write_text(MAKEFILE % tricks)
    (tree / "Kconfig").write_text('config PCI\n\tbool "the bus"\n')
    return tree


def kernel_of(bench: Bench, source: Path) -> None:
    fragment = bench.folder / "input" / "base.config"
    fragment.write_text("# the bus\nCONFIG_PCI=y\n")
    params: dict[str, Json] = {
        "member": None,
        "configs": ["base"],
        "tools": {},
        "initramfs": {"compression": "none", "placement": "separate"},
    }
    stage = Stage("kernel", "kernel", 1, params, {"source": "tree:1", "config/base": "blob:2"})
    inputs = {"source": source, "config/base": fragment}
    build_kernel(stage, inputs, bench.folder / "out", bench.runner)


def kernel_is_harmless(bench: Bench, source: Path) -> bool:
    return built_or_refused(bench, lambda _: kernel_of(bench, source))


def test_the_kernel_that_tricks_are_played_on_is_built_without_them(bench: Bench) -> None:
    source = kernel_tree(bench)
    assert kernel_is_harmless(bench, source)
    bench.clear()
    assert kernel_is_harmless(bench, source)
    assert (bench.folder / "out" / "vmlinuz").read_text() == "kernel\n"


@pytest.mark.parametrize("link", SOURCE_LINKS)
def test_links_in_a_kernels_source_lead_nowhere(bench: Bench, link: str) -> None:
    source = kernel_tree(bench)
    place = bench.folder / "work" / link[3:] if link.startswith("../") else source / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(bench.secrets[0])
    kernel_is_harmless(bench, source)


@pytest.mark.parametrize("trick", CONFIG_TRICKS)
def test_links_that_a_kernels_configurator_lays_lead_nowhere(bench: Bench, trick: str) -> None:
    kernel_is_harmless(bench, kernel_tree(bench, on_config=trick))


@pytest.mark.parametrize("trick", BUILD_TRICKS)
def test_links_that_a_kernels_build_lays_lead_nowhere(bench: Bench, trick: str) -> None:
    kernel_is_harmless(bench, kernel_tree(bench, on_build=trick))


@pytest.mark.parametrize("good", [True, False])
def test_objects_of_an_earlier_build_are_not_laid_through_links_of_the_source(
    bench: Bench, good: bool
) -> None:
    source = kernel_tree(bench, on_build="rm -f gen; mkdir gen; echo planted > gen/file")
    if not good:
        (source / "gen").symlink_to(bench.folder / "private")
    assert kernel_is_harmless(bench, source)
    assert any((bench.folder / "leftovers").iterdir())
    bench.clear()
    (source / "Makefile").write_text((source / "Makefile").read_text().replace("mkdir gen", "ls"))
    assert kernel_is_harmless(bench, source) is good


@pytest.mark.parametrize("good", [True, False])
def test_an_archive_whose_top_folder_is_a_link_is_no_kernel(bench: Bench, good: bool) -> None:
    tree = kernel_tree(bench)
    archive = bench.folder / "input" / "linux.tar"
    with tarfile.open(archive, "w") as made:
        if good:
            made.add(tree, "linux")
        else:
            link = tarfile.TarInfo("linux")
            link.type, link.linkname = tarfile.SYMTYPE, str(tree)
            made.addfile(link)
    before = sorted(path.name for path in tree.iterdir())
    assert kernel_is_harmless(bench, archive) is good
    assert sorted(path.name for path in tree.iterdir()) == before


PLATFORM = "OvmfPkg/Tiny.dsc"
TREE = {
    "BaseTools/Source/C/Makefile": "all:\n\tmkdir bin; echo program > bin/GenFw\n\t%s\n",
    "BaseTools/BinWrappers/PosixLike/build": "#!/bin/sh\n",
    "BaseTools/Conf/target.template": "",
    "BaseTools/Scripts/script": "",
    "BaseTools/Source/Python/one.py": "",
    PLATFORM: "OUTPUT_DIRECTORY = Build/Tiny\nFLASH_DEFINITION = OvmfPkg/Tiny.fdf\n",
    "OvmfPkg/Tiny.fdf": "!include OvmfPkg/Tiny.fdf\nINF A/A.inf\n",
}
EDK2_LINKS = {
    "Conf": "private",
    "Conf/target.txt": "secret",
    "Build": "private",
    "Build/Tiny/RELEASE_GCC5/StackCookieValues32.json": "secret",
    "OvmfPkg/Tiny.fdf": "secret",
    PLATFORM: "secret",
    "debian/changelog": "secret",
    "debian/patches": "private",
    "../unpacked": "private",
}
EDK2_TRICKS = [
    "ln -sf {secret} FV/OVMF.fd",
    "rm FV/OVMF.fd; mkfifo FV/OVMF.fd",
    "mkfifo FV/A.Fv",
    "ln -s {secret} FV/A.Fv",
    "mv FV elsewhere; ln -s {private} FV",
]
TOOLS_TRICKS = [
    "ln -sf {secret} bin/GenFw",
    "rm -r bin; ln -s {private} bin",
    "rm -r ../../Conf; ln -s {private} ../../Conf",
    "ln -sf {secret} ../Python/one.py",
    "mkdir -p ../../../../made; ln -s {private} ../../../../made/BaseTools",
]


def edk2_tree(bench: Bench, trick: str = "true") -> Path:
    tree = bench.folder / "input" / "edk2"
    for name, text in TREE.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text % trick if "%s" in text else text)
    return tree


def edk2_tools(bench: Bench, tricks: str) -> Path:
    """Tools whose `build` makes a firmware, and plays tricks."""
    tools = bench.folder / "input" / "tools" / "BaseTools"
    wrappers = tools / "BinWrappers" / "PosixLike"
    wrappers.mkdir(parents=True)
    (tools / "Conf").mkdir()
    for name in ("build_rule", "target", "tools_def"):
        (tools / "Conf" / f"{name}.template").write_text("DEFINE GCC_ALL_CC_FLAGS = -g\n")
    (tools / "firmware.fd").write_bytes(firmware())
    script = f"cp {tools}/firmware.fd FV/OVMF.fd\n{tricks}\n"
    (wrappers / "build").write_text(
        f"#!/bin/sh\ncd Build/Tiny/RELEASE_GCC5 && mkdir -p FV && {script}"
    )
    (wrappers / "build").chmod(0o755)
    return tools.parent


def firmware_is_harmless(bench: Bench, source: Path, trick: str = "true") -> bool:
    places = {"secret": bench.secrets[0], "private": bench.folder / "private"}
    inputs = {"source/./edk2": source, "tools": edk2_tools(bench, trick.format(**places))}
    params: dict[str, Json] = {
        "trees": {".": ["edk2"]},
        "source": "edk2",
        "platform": PLATFORM,
        "target": "RELEASE",
        "toolchain": "GCC5",
        "defines": {},
        "flash_device": "OVMF",
        "modes": ["sev"],
        "tools": {},
    }
    bench.runner = bench.a_runner(inputs)
    stage = Stage("firmware", "edk2", 1, params, dict.fromkeys(inputs, "blob:"))
    return built_or_refused(bench, lambda out: build_edk2(stage, inputs, out, bench.runner))


def test_the_firmware_that_tricks_are_played_on_is_built_without_them(bench: Bench) -> None:
    assert firmware_is_harmless(bench, edk2_tree(bench))
    assert (bench.folder / "out" / "firmware.fd").read_bytes() == firmware()


@pytest.mark.parametrize("link", EDK2_LINKS)
def test_links_in_a_firmwares_source_lead_nowhere(bench: Bench, link: str) -> None:
    source = edk2_tree(bench)
    place = bench.folder / "work" / link[3:] if link.startswith("../") else source / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(bench.folder / EDK2_LINKS[link])
    firmware_is_harmless(bench, source)


@pytest.mark.parametrize("trick", EDK2_TRICKS)
def test_links_that_a_firmwares_build_lays_lead_nowhere(bench: Bench, trick: str) -> None:
    assert not firmware_is_harmless(bench, edk2_tree(bench), trick)


@pytest.mark.parametrize("trick", ["true", *TOOLS_TRICKS])
def test_links_that_the_build_of_edk2s_tools_lays_lead_nowhere(bench: Bench, trick: str) -> None:
    places = {"secret": bench.secrets[0], "private": bench.folder / "private"}
    inputs = {"source/./edk2": edk2_tree(bench, trick.format(**places))}
    stage = Stage(
        "firmware-tools", "edk2_tools", 1, {"trees": {".": ["edk2"]}}, {"source/./edk2": "tree:1"}
    )
    bench.runner = bench.a_runner(inputs)
    done = built_or_refused(bench, lambda out: build_edk2_tools(stage, inputs, out, bench.runner))
    assert done or trick != "true"


# --- the sysroot --------------------------------------------------------------------------------


def a_package(folder: Path, name: str, held: Mapping[str, bytes | str]) -> Path:
    """A package of files and, where a text is given, symbolic links."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for path, content in held.items():
            info = tarfile.TarInfo(path)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    about = tar({"./control": CONTROL.replace(b"Package: p", b"Package: " + name.encode())})
    package = folder / f"{name}.deb"
    package.write_bytes(deb(made.getvalue(), about))
    return package


def a_sysroot(bench: Bench, *held: Mapping[str, bytes | str]) -> Path:
    """The root that packages make, each of which holds one of `held`."""
    packages = [
        a_package(bench.folder / "input", f"p{number}", one) for number, one in enumerate(held)
    ]
    stage = Stage("sysroot", "sysroot", 1, {}, {})
    build_sysroot(stage, {p.name: p for p in packages}, bench.folder / "out", bench.runner)
    return bench.folder / "out" / "root"


UP = "../../../private"  # from usr/ in the root, by way of the host
CLIMBING: Mapping[str, tuple[Mapping[str, bytes | str], Mapping[str, bytes | str]]] = {
    "merged": ({"usr/lib": UP}, {"lib/planted": b"x"}),
    "folder": ({"usr/share": UP}, {"usr/share/planted": b"x"}),
    "absolute": ({"usr/share": "/../../private"}, {"usr/share/planted": b"x"}),
    "by a link": ({"usr/up": "/", "usr/lib": "up/../../private"}, {"lib/planted": b"x"}),
    "from a link": (
        {"usr/a/b/c": "../../../x"},
        {"usr/a/b/c/lib": "../../../../private", "usr/a/b/c/lib/planted": b"x"},
    ),
    "link on link": ({"usr/lib": UP}, {"lib/planted": UP, "usr/lib/planted/more": b"x"}),
    "top": ({"usr": "../../private"}, {"usr/lib/planted": b"x", "lib/more": b"x"}),
}


@pytest.mark.parametrize("name", CLIMBING)
def test_no_package_s_link_leads_out_of_the_sysroot(bench: Bench, name: str) -> None:
    try:
        root = a_sysroot(bench, *CLIMBING[name])
    except SevkitError:
        root = bench.folder / "out" / "root"
    assert [path.name for path in (bench.folder / "private").iterdir()] == ["secret"]
    links = [path for path in root.rglob("*") if path.is_symlink()]
    assert links
    for link in links:
        assert Path(os.path.realpath(link)).is_relative_to(root)


def test_links_of_packages_that_stay_inside_keep_their_text(bench: Bench) -> None:
    texts = {
        "usr/lib/library.so": "library.so.1",
        "usr/lib/here": ".",
        "usr/share/doc/a/b": "../../../lib/library.so.1",
        "usr/share/doc/lost": "../nowhere/at/all",
    }
    root = a_sysroot(bench, texts, {"lib/library.so.1": b"l", "usr/lib/abs": "/lib/library.so.1"})
    assert {path: str((root / path).readlink()) for path in texts} == texts
    assert str((root / "usr/lib/abs").readlink()) == "library.so.1"
    assert (root / "usr/share/doc/a/b").read_bytes() == b"l"


@pytest.mark.parametrize("what", [b"a file", "lib", "/opt"])
def test_a_package_can_t_put_something_below_what_is_no_folder_of_its_own(
    bench: Bench, what: bytes | str
) -> None:
    below: Mapping[str, bytes | str] = {"lib/library": b"l"}
    with pytest.raises(SevkitError, match="p2 and p1 both hold /usr/lib"):
        a_sysroot(bench, {"opt/x": b""}, {"usr/lib": what}, below)
    bench.clear()
    assert (a_sysroot(bench, {"opt/x": b""}, below) / "usr/lib/library").read_bytes() == b"l"
