# SPDX-License-Identifier: Apache-2.0
"""An image made by the stages firmware and image from small made-up results of the others."""

import hashlib
import json
import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from firmware_samples import firmware

from sevkit.canonical import Json
from sevkit.recipe.model import Recipe
from sevkit.stage import Stage
from sevkit.stages.firmware import build_firmware, plan_firmware
from sevkit.stages.image import build_image, plan_image
from sevkit.toolchain import HOST

CONFIG = "CONFIG_AMD_MEM_ENCRYPT=y\nCONFIG_SWIOTLB=y\n"
DEB = "a" * 64
_SEVKIT = {"origin": "sevkit", "chain": ["every guest"]}
_CRUN = {"origin": "package", "package": "crun", "version": "1.8", "licence": "GPL-2.0-or-later"}
PATHS: Sequence[Mapping[str, Any]] = [
    {"path": "/dev", "type": "directory", "mode": "0755", **_SEVKIT},
    {"path": "/dev/console", "type": "char", "mode": "0600", "device": "5:1", **_SEVKIT},
    {
        **{"path": "/init", "type": "file", "mode": "0755", "origin": "agent"},
        **{"size": 40000, "sha256": "d" * 64, "chain": ["/init"], "licence": "Apache-2.0"},
    },
    {
        **{"path": "/usr/bin/crun", "type": "file", "mode": "0755", "size": 400},
        **{"sha256": "9" * 64, "chain": ["/usr/bin/crun"], **_CRUN},
    },
    {
        **{"path": "/usr/bin/oci", "type": "symlink", "mode": "0777", "target": "crun"},
        **{"chain": ["/usr/bin/oci"], **_CRUN},
    },
]
"""What the made-up initramfs holds, as contents.json has it."""


def recipe(**changes: Any) -> Recipe:
    """A recipe whose sources are found by name in `Bench.folder`."""
    return Recipe.model_validate(
        {
            "schema": 1,
            "name": "made-up",
            "version": "1.0.0",
            "summary": "for tests",
            "sources": {"linux": {"deb": "linux-source"}, "ovmf": {"file": Path("OVMF.fd")}},
            "kernel": {
                "source": "linux",
                "patches": "linux-6.12",
                "configs": ("base", "sev"),
                "cmdline": ("console=ttyS0", "swiotlb=force"),
            },
            "agent": {"path": Path("agent"), "binary": "sevkit-agent"},
            "initramfs": {"max_size": 14 << 20},
            "firmware": {"source": "ovmf"},
            "launch": {"vcpus": (1, 2), "cpus": ("EPYC-Milan",)},
            **changes,
        }
    )


def bzimage(init_size: int = 25 << 20, protocol: int = 0x20F, size: int = 8192) -> bytes:
    """A kernel that is nothing but its header."""
    data = bytearray(size)
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, protocol)
    struct.pack_into("<I", data, 0x260, init_size)
    return bytes(data)


class Bench:
    """Plans and builds; stands for the planner and the runner, so nothing here runs a tool."""

    def __init__(self, folder: Path, recipe: Recipe):
        self.folder = folder
        self.recipe = recipe
        self.toolchain = HOST
        self.stages: dict[str, Stage] = {}
        self.places: dict[str, Path] = {}
        self.jobs = 1
        (folder / "agent").mkdir()
        (folder / "agent" / "main.c").write_text("int main(void) { return 0; }\n")
        (folder / "OVMF.fd").write_bytes(firmware())

    # what plan functions ask

    def source(self, name: str) -> str:
        return self.local(self.recipe.sources[name].file)  # type: ignore[union-attr]

    def local(self, path: Path, *, leave_out: Collection[str] = ()) -> str:
        place = self.folder / path
        kind, content = "blob", place
        if place.is_dir():
            kind, content = "tree", next(place.iterdir())
        reference = f"{kind}:{hashlib.sha256(content.read_bytes()).hexdigest()}"
        self.places[reference] = place
        return reference

    def stage(self, name: str) -> str:
        return self.stages[name].reference

    def tool(self, name: str) -> str:
        return f"{name} 12.2.0"

    def provenance(self) -> Sequence[Mapping[str, Json]]:
        origin = {"kind": "deb", "package": "linux-source", "version": "1", "suite": ""}
        return [
            {
                "source": "linux",
                "reference": f"blob:{DEB}",
                "name": "linux-source_1_all.deb",
                "size": 7,
                "origin": origin,
            }
        ]

    def recorded(self) -> Mapping[str, Json]:
        return {
            name: {"version": stage.version, "params": stage.params, "inputs": {}}
            for name, stage in self.stages.items()
        }

    # what build functions use

    @property
    def work(self) -> Path:
        place = self.folder / "work"
        place.mkdir(exist_ok=True)
        return place

    # results of the stages that are not under test

    def made_up(self, name: str, files: Mapping[str, bytes | str | dict[str, Any]]) -> Path:
        """The result of a stage `name` that holds `files`."""
        stage = Stage(name, name, 1, {"made": "up"}, {})
        place = self.folder / f"stage-{name}"
        place.mkdir(exist_ok=True)
        for file, content in files.items():
            text = json.dumps(content) if isinstance(content, dict) else content
            (place / file).write_bytes(text.encode() if isinstance(text, str) else text)
        self.stages[name], self.places[stage.reference] = stage, place
        return place

    def others(self, *, version: str = "6.12.30", placement: str = "separate") -> None:
        """Results of kernel, initramfs and agent."""
        kernel, archive = bzimage(), b"compressed"
        archive_sha256 = hashlib.sha256(archive).hexdigest()
        self.made_up(
            "kernel",
            {
                "vmlinuz": kernel,
                "config": CONFIG,
                "kernel.json": {
                    "release": f"{version}-sevkit",
                    "version": version,
                    "config_sha256": hashlib.sha256(CONFIG.encode()).hexdigest(),
                    "fragments": ["base", "sev"],
                    "patches": [
                        {
                            "name": "0001-virtio.patch",
                            "sha256": "b" * 64,
                            "description": "virtio: bounce, always — überall",
                            "forwarded": "no",
                            "files": ["drivers/virtio/virtio.c"],
                        }
                    ],
                    "moved_hunks": [],
                    "unmet_wanted": [],
                    "compiler": "gcc 12.2.0",
                    "bzimage_bytes": len(kernel),
                    "initramfs": placement,
                    "initramfs_sha256": archive_sha256 if placement == "builtin" else None,
                },
            },
        )
        package = {
            "name": "crun",
            "version": "1.8",
            "source": "crun",
            "licence": "GPL-2.0-or-later",
        }
        self.made_up(
            "initramfs",
            {
                "initramfs": archive,
                "contents.json": {
                    "packages": [{**package, "other_licences": [], "bytes": 400}],
                    "paths": PATHS,
                },
                "initramfs.json": {
                    "compression": "zstd",
                    "level": 10,
                    "compressor": "zstd 1.5.4",
                    "size": len(archive),
                    "sha256": archive_sha256,
                    "archive_size": 6 << 20,
                    "archive_sha256": "c" * 64,
                    "paths": len(PATHS),
                },
            },
        )
        self.made_up(
            "agent",
            {
                "agent": b"\x7fELF",
                "agent.json": {
                    "name": "sevkit-agent",
                    "size": 40000,
                    "sha256": "d" * 64,
                    "format": "x86-64",
                    "licence": "Apache-2.0",
                },
            },
        )

    def firmware(self) -> Path:
        """Build the firmware stage."""
        stage = plan_firmware(self)  # type: ignore[arg-type]
        out = self.folder / "stage-firmware"
        out.mkdir()
        inputs = {role: self.places[reference] for role, reference in stage.inputs.items()}
        build_firmware(stage, inputs, out, self)  # type: ignore[arg-type]
        self.stages["firmware"], self.places[stage.reference] = stage, out
        return out

    def proof(self) -> None:
        """What the stage firmware-proof would say of the firmware that was built."""
        digest = hashlib.sha256((self.folder / "stage-firmware" / "firmware.fd").read_bytes())
        proof = {"firmware_sha256": digest.hexdigest(), "refuses": []}
        self.made_up("firmware-proof", {"proof.json": proof})

    def image(self) -> Path:
        """Build the image stage."""
        stage = plan_image(self)  # type: ignore[arg-type]
        out = self.folder / "image"
        out.mkdir()
        inputs = {role: self.places[reference] for role, reference in stage.inputs.items()}
        build_image(stage, inputs, out, self)  # type: ignore[arg-type]
        self.stages["image"] = stage
        return out


def measured_image(folder: Path, firmware: bytes) -> Path:
    """An image whose recipe asks for measured boot, as if `firmware` had been proven."""
    bench = Bench(folder, recipe(launch={"measured": True, "vcpus": (1, 2)}))
    (folder / "OVMF.fd").write_bytes(firmware)
    bench.others()
    bench.firmware()
    bench.proof()
    return bench.image()


def image(folder: Path, placement: str = "separate", **changes: Any) -> Path:
    """A whole image directory in `folder`."""
    bench = Bench(folder, recipe(**changes))
    bench.others(placement=placement)
    bench.firmware()
    return bench.image()
