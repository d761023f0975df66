# SPDX-License-Identifier: Apache-2.0
"""Root file systems of another Debian, made as those of toolchains are."""

from collections.abc import Sequence
from pathlib import Path

from sevkit.sources import Apt, DebGroup, fetch
from sevkit.stage import Stage
from sevkit.stages.sysroot import build_sysroot
from sevkit.store.store import Store
from sevkit.toolchain import LINKS


class _Unpacking:
    """The runner of a stage that runs nothing."""

    def __init__(self, work: Path):
        self.work = work

    def progress(self, *_: object) -> None:
        return


def debian_root(folder: Path, packages: Sequence[str], suite: str) -> Path:
    """A root file system in `folder`: the packages of a release and all that they depend on."""
    store, apt = Store(folder / "store"), Apt(folder / "apt")
    inputs = {}
    for pin in apt.resolve(DebGroup(tuple(packages), suite)):
        fetch(pin, store.partial(pin.reference), lambda *_: None, apt)
        store.add_blob(store.partial(pin.reference), pin.reference)
        inputs[pin.name] = store.blob(pin.reference)
    for name in ("work", "out"):
        (folder / name).mkdir()
    stage = Stage("root", "sysroot", 1, {"links": LINKS}, {})
    run = _Unpacking(folder / "work")
    build_sysroot(stage, inputs, folder / "out", run)  # type: ignore[arg-type]
    return folder / "out" / "root"
