# SPDX-License-Identifier: Apache-2.0
"""A container image becomes one file that a guest checks block by block: the workload image.

It is an erofs file system with its dm-verity hash tree behind it, and holds `config.json`, the OCI
runtime configuration, beside `rootfs/`. Whoever puts its root hash on the kernel command line has
measured the workload with the guest. The same container image gives the same bytes.
"""

import json
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sevkit.canonical import Json
from sevkit.errors import RecipeError
from sevkit.oci import erofs, verity
from sevkit.oci import image as oci_image
from sevkit.oci.config import Accounts, Overrides, runtime_config
from sevkit.oci.filetree import FileTree, Node

SEALED = "sevkit.sealed"
"""The word of the kernel command line with which the agent runs the image's own command alone."""


@dataclass(frozen=True)
class Workload:
    """A workload image. `config` is the runtime configuration in it; None: it names no command."""

    verity: verity.Verity
    accounts: Accounts
    config: Mapping[str, Json] | None


def make(image: oci_image.Image, file: Path) -> Workload:
    """Write the workload image of `image` to the new file `file`.

    Raises `SourceError` for a layer that is damaged, too large, or holds what no layer may.
    """
    with tempfile.TemporaryFile(dir=file.parent) as spool:
        tree = FileTree(spool)
        for layer in image.layers:
            tree.add_layer(layer)
        accounts = Accounts(
            *(tree.read(path).decode("utf-8", "replace") for path in ("etc/passwd", "etc/group"))
        )
        config = _own_config(image.config, accounts)
        rootfs = tree.root
        tree.root = Node(stat.S_IFDIR | 0o755)
        tree.root.children[b"rootfs"] = rootfs
        if config is not None:
            text = json.dumps(config, sort_keys=True, separators=(",", ":"))
            tree.add_file(b"config.json", text.encode())
        with file.open("x+b") as out:
            erofs.write(tree, out)
            return Workload(verity.append_tree(out), accounts, config)


def _own_config(image_config: Mapping[str, Json], accounts: Accounts) -> Mapping[str, Json] | None:
    wanted = image_config.get("config")
    wanted = wanted if isinstance(wanted, Mapping) else {}
    if not wanted.get("Entrypoint") and not wanted.get("Cmd"):
        return None
    try:
        return runtime_config(image_config, Overrides(), accounts)
    except RecipeError as error:
        raise RecipeError(
            f"the container image can't run as it says: {error.what}", why=error.why
        ) from error
