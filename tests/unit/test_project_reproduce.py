# SPDX-License-Identifier: Apache-2.0
"""How two files, two images, and what they were built from are held against each other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from image_samples import image, recipe
from test_plan import REPOSITORY
from test_project_cache_key import lockable_pins

from sevkit import plan as planning
from sevkit.errors import ImageError
from sevkit.image.manifest import Manifest, load
from sevkit.image.output import build_id
from sevkit.image.shape import Source
from sevkit.plan import make_plan, requests
from sevkit.project import reproduce as module
from sevkit.project.reproduce import Comparison, Reproduction, compared, other_inputs
from sevkit.recipe.file import load as load_recipe
from sevkit.recipe.library import Library
from sevkit.recipe.model import Recipe
from sevkit.stage import Plan
from sevkit.toolchain import HOST

BLOCK = 1 << 20
FIRMWARE = """[firmware]
source = "edk2"
platform = "OvmfPkg/AmdSev/AmdSevX64.dsc"
patches = "edk2-2025.02"
defines = { GRUB_ENABLE = "FALSE", DEBUG_ON_SERIAL_PORT = "TRUE" }
"""


def write(folder: Path, **files: bytes) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"", b"", None),
        (b"a" * (2 * BLOCK), b"a" * (2 * BLOCK), None),
        (b"abc", b"abd", "differs from byte 2 on (3 and 3 bytes)"),
        (b"abc", b"abcd", "differs from byte 3 on (3 and 4 bytes)"),
        (b"", b"x", "differs from byte 0 on (0 and 1 bytes)"),
        (
            b"a" * BLOCK + b"b",
            b"a" * BLOCK + b"c",
            f"differs from byte {BLOCK} on ({BLOCK + 1} and {BLOCK + 1} bytes)",
        ),
        (
            b"a" * BLOCK,
            b"a" * BLOCK + b"c",
            f"differs from byte {BLOCK} on ({BLOCK} and {BLOCK + 1} bytes)",
        ),
    ],
)
def test_the_first_byte_that_differs_is_told(
    old: bytes, new: bytes, words: str | None, tmp_path: Path
) -> None:
    folders = write(tmp_path / "old", file=old), write(tmp_path / "new", file=new)
    assert list(compared(*folders)) == [Comparison("file", words)]


def test_files_that_one_image_has_alone_are_told_and_signatures_are_not(tmp_path: Path) -> None:
    old = write(tmp_path / "old", both=b"x", gone=b"")
    (old / "manifest.json.sig").write_bytes(b"signed later")
    new = write(tmp_path / "new", both=b"x", more=b"")
    assert list(compared(old, new)) == [
        Comparison("both", None),
        Comparison("gone", "was not built again"),
        Comparison("more", "is only in the one built now"),
    ]


@pytest.mark.parametrize(("difference", "same"), [(None, True), ("differs", False)])
def test_an_image_is_reproduced_when_no_file_differs(difference: str | None, same: bool) -> None:
    files = [Comparison("a", None), Comparison("b", difference)]
    assert Reproduction(Path("image"), files, [], [], "").is_same is same


def git_recipe(url: str, commit: str = "a" * 40) -> Recipe:
    sources = {"linux": {"git": url, "commit": commit}, "ovmf": {"file": Path("OVMF.fd")}}
    agent = {"source": "ovmf", "member": "agent"}
    return recipe(sources=sources, agent=agent)


def test_an_image_says_neither_what_is_fetched_nor_from_where(tmp_path: Path) -> None:
    private = "file:///home/somebody/private"
    manifest = load(image(tmp_path))

    def pins(asked: Recipe, commit: str) -> object:
        origin = {"kind": "git", "url": private, "commit": commit}
        row = Source(
            source="linux", reference=f"git:{commit}", name="linux.tar", size=7, origin=origin
        )
        return module._pins(manifest.model_copy(update={"sources": (row,)}), asked, HOST)

    asked = git_recipe("https://user:secret@example.org/linux.git")
    found = pins(asked, "a" * 40)
    assert isinstance(found, dict)
    [pin] = found["linux"]
    assert pin.origin["url"] == "https://user:secret@example.org/linux.git"
    with pytest.raises(ImageError, match="built from another linux") as caught:
        pins(asked, "b" * 40)
    assert f"git:{'b' * 40}" in caught.value.why


class Varied:
    """A project, and the manifest of an image that was built of it as it is at first."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("recipes", "kernel-configs", "patches", "agent"):
            shutil.copytree(REPOSITORY / name, folder / name)
        self.config: Path | None = None
        self.says("")
        plan = self.plan()
        params: Any = plan.stage("image").params
        stated = json.loads((REPOSITORY / "tests" / "golden" / "manifest.json").read_text())
        for part in ("version", "summary", "variant", "cmdline", "toolchain", "sources", "build"):
            stated[part] = params[part]
        modes = stated["launch"]["modes"]
        for mode, facts in modes.items():
            facts["asked"] = mode in params["launch"]["modes"]
        stated["launch"] = {**params["launch"], "modes": modes}
        stated["build_id"] = build_id(plan.stage("image"))
        self.manifest = Manifest.model_validate_json(json.dumps(stated))

    def says(self, more: str) -> None:
        """Have the recipe say `more` than the one that it extends."""
        text = f'schema = 1\nextends = "sev-guest"\nname = "varied"\n{more}\n'
        (self.folder / "recipes" / "varied.toml").write_text(text)

    def plan(self) -> Plan:
        library = Library.of(self.folder)
        asked = load_recipe("varied", {}, library)
        pins = lockable_pins(requests(asked))
        return make_plan(asked, library, pins, locked_config=lambda _: self.config)

    def told(self) -> list[str]:
        """What differs, after the line that says that something does."""
        return list(other_inputs(self.plan(), self.manifest))[1:]


@pytest.fixture
def varied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Varied:
    monkeypatch.setattr(planning, "tool_version", lambda name: f"{name} 1.0")
    return Varied(tmp_path / "project")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ('[initramfs]\ncompression = "gzip"', "initramfs: compression: zstd → gzip"),
        ("[initramfs]\nmax_size = 9999999", "initramfs: max_size: "),
        ("[launch]\nvcpus = [3]", "launch.vcpus: 1, 2, 4, 8 → 3"),
        ('[launch]\nmodes = ["sev"]', "launch.modes: sev, sev-es, sev-snp → sev"),
        ('[kernel]\ncmdline = ["...", "audit=0"]', "cmdline: "),
        (FIRMWARE, "firmware: defines.DEBUG_ON_SERIAL_PORT: new, TRUE"),
    ],
)
def test_each_choice_of_a_recipe_that_is_another_is_named(
    more: str, told: str, varied: Varied
) -> None:
    assert list(other_inputs(varied.plan(), varied.manifest)) == []
    varied.says(more)
    assert any(line.startswith(told) for line in varied.told()), varied.told()


def test_each_file_of_the_project_that_is_another_is_named(varied: Varied) -> None:
    def append(name: str) -> None:
        path = varied.folder / name
        path.write_text(path.read_text() + "\n")

    append("kernel-configs/hardening.config")
    assert varied.told() == ["kernel: config/hardening is another one"]
    edk2 = varied.folder / "patches" / "edk2-2025.02"
    [patch, *_] = [word for word in (edk2 / "series").read_text().split() if ".patch" in word]
    append(f"patches/edk2-2025.02/{patch}")
    append("agent/version.h")
    told = varied.told()
    assert f"firmware: patch/{patch} is another one" in told
    assert any(line.startswith("agent: ") for line in told)
    varied.config = varied.folder / "locked.config"
    varied.config.write_text("CONFIG_64BIT=y\n")
    assert "kernel: locked-config is new" in varied.told()


def test_another_compiler_or_step_of_sevkits_own_is_named(
    varied: Varied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sevkit.stages.kernel.VERSION", 99)
    assert varied.told() == ["kernel: sevkit makes it in another way"]
    monkeypatch.setattr(planning, "tool_version", lambda name: f"{name} 2.0")
    told = varied.told()
    assert "toolchain: gcc 1.0, ld 1.0 → gcc 2.0, ld 2.0" in told
    assert "kernel: tools.gcc: gcc 1.0 → gcc 2.0" in told
