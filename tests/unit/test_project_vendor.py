# SPDX-License-Identifier: Apache-2.0
"""A vendored folder plans the image of its project, or is refused; test_locked.py builds in one."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from sevkit import plan as planning
from sevkit.canonical import sha256_of
from sevkit.engine import Settings
from sevkit.errors import RecipeError
from sevkit.events import Event
from sevkit.project.lock import Choice, Lock, config_key
from sevkit.project.project import Project
from sevkit.project.vendor import vendor
from sevkit.recipe import library
from sevkit.recipe.library import built_in_root
from sevkit.sources import DebGroup, Pin
from sevkit.stage import Plan
from sevkit.toolchain import HOST, Toolchain, packages

RECIPE = """\
schema = 1
name = "mini"
version = "1"
[vars]
packing = "zstd"
level = "1"
[sources]
linux = { file = "../files/linux.tar" }
agent = { file = "../files/agent" }
fw = { file = "../files/fw" }
[kernel]
source = "linux"
configs = ["base"]
cmdline = ["console=ttyS0"]
[agent]
source = "agent"
[initramfs]
max_size = "14 MiB"
compression = "{{ packing }}"
[firmware]
source = "fw"
[launch]
modes = ["sev"]
"""


def heard(_: Event) -> None:
    pass


class Vendoring:
    """A project whose recipe takes local files alone, and folders that are made of it."""

    def __init__(self, folder: Path):
        self.above = folder
        self.folder = folder / "project"
        self.to = folder / "vendored"
        self.toolchain = HOST
        for name in ("linux.tar", "agent", "fw"):
            self.write(f"files/{name}", name)
        self.write("recipes/mini.toml", RECIPE)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def project(self, folder: Path) -> Project:
        return Project(folder, folder / "out", self.above / "store", heard, self.toolchain)

    def plan(self, folder: Path, name: str, **variables: str) -> Plan:
        project = self.project(folder)
        return project.plan(project.recipe(name, variables))

    def vendor(self, name: str = "mini", **variables: str) -> int:
        project = self.project(self.folder)
        recipe = project.recipe(name, variables)
        return vendor(recipe, variables, project, Settings(1, self.above / "logs"), self.to)

    def files(self) -> Sequence[str]:
        paths = (path for path in self.to.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.to).as_posix() for path in paths)


@pytest.fixture
def vendoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vendoring:
    monkeypatch.setattr(planning, "tool_version", lambda name: f"{name} 1.0")
    return Vendoring(tmp_path)


def keys(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in plan.stages}


def test_what_can_be_run_in_the_project_can_be_run_in_the_folder(vendoring: Vendoring) -> None:
    """It is part of an initramfs, and so of its key."""
    vendoring.write("files/tool", "#!/bin/sh\n").chmod(0o700)
    vendoring.write("files/data", "none to run\n").chmod(0o600)
    vendoring.write("files/tree/build", "a file that is called as a folder of products\n")
    vendoring.write("files/tree/run", "#!/bin/sh\n").chmod(0o711)
    files = '"/bin/tool" = "../files/tool"\n"/etc/data" = "../files/data"\n'
    files += '"/usr/tree" = "../files/tree"\n'
    vendoring.write("recipes/mini.toml", f"{RECIPE}[initramfs.files]\n{files}")
    vendoring.vendor()
    modes = {
        name: (vendoring.to / "files" / name).stat().st_mode & 0o777
        for name in ("tool", "data", "tree/run", "tree/build")
    }
    assert modes == {"tool": 0o755, "data": 0o644, "tree/run": 0o755, "tree/build": 0o644}
    planned = keys(vendoring.plan(vendoring.to, "mini"))
    assert planned == keys(vendoring.plan(vendoring.folder, "mini"))


def command(folder: Path) -> str:
    """What the folder says that builds in it."""
    lines = (folder / "README.md").read_text().splitlines()
    [line] = [line.strip() for line in lines if line.startswith("    ")]
    return line


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("mini", "mini"),
        ("other-file", "other-file"),
        ("recipes/other-file.toml", "other-file"),
        ("recipes/../shared/own.toml", "./shared/own.toml"),
        ("own", "./own"),
    ],
)
def test_a_recipe_is_where_it_was_and_asked_for_as_that_wants(
    name: str, asked: str, vendoring: Vendoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each says that it is called mini, and is another one."""
    for number, place in enumerate(("recipes/other-file.toml", "shared/own.toml", "own")):
        text = RECIPE.replace('version = "1"', f'version = "1.{number}"')
        vendoring.write(place, text.replace("../", "") if place == "own" else text)
    word = name if name in ("mini", "other-file") else str(vendoring.folder / name)
    vendoring.vendor(word)
    monkeypatch.chdir(vendoring.to)
    assert f"build {asked} " in command(vendoring.to)
    assert keys(vendoring.plan(vendoring.to, asked)) == keys(vendoring.plan(vendoring.folder, word))


def test_its_command_has_all_that_decides_what_is_built(
    vendoring: Vendoring, tmp_path: Path
) -> None:
    """Variables, tools, and the lock only where it holds the kernel configuration for them."""
    group = DebGroup(packages=packages(), suite="trixie")
    with vendoring.project(vendoring.folder).store.scratch() as scratch:
        (scratch / "deb").write_text("a package")
        reference = f"blob:{sha256_of(scratch / 'deb')}"
        vendoring.project(vendoring.folder).store.add_blob(scratch / "deb", reference)
    origin = {"kind": "deb", "version": "1", "path": "pool/p.deb"}
    pins = [
        Pin(reference, f"{name}.deb", 9, {**origin, "package": name}) for name in group.packages
    ]
    vendoring.project(vendoring.folder).memory.remember(group, pins)

    def said(name: str, toolchain: Toolchain, **variables: str) -> str:
        vendoring.to, vendoring.toolchain = tmp_path / name, toolchain
        vendoring.vendor("mini", **variables)
        here = vendoring.plan(vendoring.folder, "mini", **variables)
        assert keys(vendoring.plan(vendoring.to, "mini", **variables)) == keys(here)
        return command(vendoring.to)

    trixie = Toolchain("trixie")
    build = "sevkit -C . build mini"
    assert said("plain", HOST) == f"{build} --offline"
    key = config_key(vendoring.plan(vendoring.folder, "mini", packing="gzip").stage("kernel"))
    config = b"CONFIG_64BIT=y\n"
    lock = Lock(vendoring.folder / "recipes" / "mini.lock", "mini")
    lock = lock.with_config(key, "6.12", config, Choice("host", {"packing": "gzip"}))
    lock.write({"mini-6.12.config": config})
    assert said("other", HOST) == f"{build} --offline"
    assert said("locked", HOST, packing="gzip") == f"{build} packing=gzip --locked --offline"
    both = said("both", HOST, packing="gzip", level="two words")
    assert both == f"{build} packing=gzip 'level=two words' --locked --offline"
    tools = said("tools", trixie, packing="gzip")
    assert tools == f"{build} packing=gzip --offline --toolchain debian:trixie"
    open_ = said("open", Toolchain(confined=False), packing="gzip")
    assert open_ == f"{build} packing=gzip --locked --offline --sandbox none"


def test_a_recipe_extends_there_what_it_extends_in_the_project(vendoring: Vendoring) -> None:
    vendoring.write("recipes/mini.toml", 'schema = 1\nextends = "../shared/mini.toml"\n')
    vendoring.write("recipes/child.toml", 'schema = 1\nextends = "mini"\nname = "child"\n')
    vendoring.write("shared/mini.toml", RECIPE)
    vendoring.vendor("child")
    planned = keys(vendoring.plan(vendoring.to, "child"))
    assert planned == keys(vendoring.plan(vendoring.folder, "child"))
    recipes = [name for name in vendoring.files() if name.endswith(".toml")]
    assert recipes == ["recipes/child.toml", "recipes/mini.toml", "shared/mini.toml"]


@pytest.mark.parametrize(
    "own", ["", 'schema = 1\nextends = "mini"\nname = "mini"\nversion = "2"\n']
)
def test_what_is_built_in_comes_along_and_that_of_another_sevkit_is_not_asked(
    own: str, vendoring: Vendoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a recipe of the project stands before the built-in one of its name."""
    (vendoring.folder / "recipes" / "mini.toml").unlink()
    for sevkit, version in (("here", "1"), ("elsewhere", "1.5")):
        root = tmp_path / sevkit
        shutil.copytree(vendoring.folder / "files", root / "files")
        shutil.copytree(built_in_root() / "kernel-configs", root / "kernel-configs")
        (root / "recipes").mkdir()
        text = RECIPE.replace('version = "1"', f'version = "{version}"\nsummary = "{sevkit}"')
        (root / "recipes" / "mini.toml").write_text(text)
    if own:
        vendoring.write("recipes/mini.toml", own)
    monkeypatch.setattr(library, "built_in_root", lambda: tmp_path / "here")
    vendoring.vendor()
    here = vendoring.plan(vendoring.folder, "mini")
    monkeypatch.setattr(library, "built_in_root", lambda: tmp_path / "elsewhere")
    assert keys(vendoring.plan(vendoring.to, "mini")) == keys(here)
    assert keys(vendoring.plan(vendoring.folder, "mini")) != keys(here)
    recipes = [name for name in vendoring.files() if name.endswith(".toml")]
    assert recipes == ["built-in/recipes/mini.toml", *(["recipes/mini.toml"] if own else [])]
    vendored, vendoring.folder, vendoring.to = vendoring.to, vendoring.to, tmp_path / "again"
    vendoring.vendor()
    subprocess.run(["diff", "-r", vendored, vendoring.to], check=True)


def test_two_of_one_place_are_refused(
    vendoring: Vendoring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a vendored folder has in built-in/, and what is built in where it is vendored anew."""
    child = 'schema = 1\nextends = "mini"\nname = "mini"\n'
    shutil.copytree(vendoring.folder, tmp_path / "here")
    shutil.copytree(built_in_root() / "kernel-configs", tmp_path / "here" / "kernel-configs")
    monkeypatch.setattr(library, "built_in_root", lambda: tmp_path / "here")
    vendoring.write("built-in/recipes/mini.toml", child)
    vendoring.write("recipes/mini.toml", child)
    with pytest.raises(RecipeError) as caught:
        vendoring.vendor()
    assert caught.value.why == "both would be built-in/recipes/mini.toml"
    assert not vendoring.to.exists()


def test_a_folder_that_could_not_be_read_or_gives_another_image_is_refused(
    vendoring: Vendoring, tmp_path: Path
) -> None:
    def refusal() -> RecipeError:
        before = set(tmp_path.iterdir())
        with pytest.raises(RecipeError) as caught:
            vendoring.vendor()
        assert set(tmp_path.iterdir()) - {tmp_path / "store"} == before - {tmp_path / "store"}
        return caught.value

    what = f"mini can't be vendored: {vendoring.to} would not give the same image"
    repository = f'{{ git = "file://{vendoring.folder}/fw", commit = "{"a" * 40}" }}'
    vendoring.write("recipes/mini.toml", RECIPE.replace('{ file = "../files/fw" }', repository))
    store = vendoring.project(vendoring.folder).store
    with store.scratch() as scratch:
        (scratch / "fw").write_text("fw")
        store.add_blob(scratch / "fw", f"git:{'a' * 40}")
    refused = refusal()
    assert refused.what == what
    assert f"{vendoring.to}/recipes/mini.toml:10: sources.fw.git: " in refused.why
    assert "lies outside of the project" in refused.why

    outside = tmp_path / "outside.toml"
    outside.write_text(RECIPE.replace("../files", "project/files"))
    with pytest.raises(RecipeError, match=r"outside\.toml lies outside of the project"):
        vendoring.vendor(str(outside))

    vendoring.write("files/far/tree/file", "of a tree")
    vendoring.write("files/far/deep", "behind the link")
    vendoring.write("files/deep", "where there is no link")
    (vendoring.folder / "files" / "link").symlink_to("far/tree")
    files = (
        '"/tree" = "../files/link"\n"/one" = "../files/deep"\n"/two" = "../files/link/../deep"\n'
    )
    vendoring.write("recipes/mini.toml", f"{RECIPE}[initramfs.files]\n{files}")
    refused = refusal()
    assert refused.what == what
    assert refused.why.startswith("initramfs: inputs.files/two: blob:")

    vendoring.write("recipes/mini.toml", f'{RECIPE}[initramfs.files]\n"/tree" = "../files"\n')
    vendoring.to = vendoring.folder / "files" / "vendored"
    with pytest.raises(RecipeError, match="files can't be vendored into itself"):
        vendoring.vendor()
    vendoring.to = tmp_path / "vendored"
    vendoring.vendor()


@pytest.mark.parametrize("whole", [False, True])
def test_of_a_folder_it_has_all_that_the_plan_has(vendoring: Vendoring, whole: bool) -> None:
    """A source is taken without what git keeps in it, a folder of the initramfs with it."""
    for path in (".git/HEAD", "Makefile", "tools/build/Makefile", "build/x"):
        vendoring.write(f"files/tree/{path}", path)
    (vendoring.folder / "files/tree/link").symlink_to("Makefile")
    text = RECIPE.replace("../files/linux.tar", "../files/tree")
    if whole:
        text += '[initramfs.files]\n"/usr/tree" = "../files/tree"\n'
    vendoring.write("recipes/mini.toml", text)
    vendoring.vendor()
    tree = vendoring.to / "files" / "tree"
    found = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    rest = {"Makefile", "link", "tools/build/Makefile", "build/x"}
    assert found == (rest | {".git/HEAD"} if whole else rest)
    assert keys(vendoring.plan(vendoring.to, "mini")) == keys(
        vendoring.plan(vendoring.folder, "mini")
    )
