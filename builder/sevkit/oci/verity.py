# SPDX-License-Identifier: Apache-2.0
"""dm-verity: the hash tree of a file of blocks, and the words that make Linux check it.

Forms: Documentation/admin-guide/device-mapper/verity.rst (version 1 of the hash format) and
dm-init.rst of the kernel. No salt: the root hash names the content, nothing more is wanted of it.
"""

import hashlib
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 4096
_SECTOR = 512
DEVICE_NAME = "workload"
"""What docs/agent-protocol.md calls the device-mapper device."""


@dataclass(frozen=True)
class Verity:
    """A file of `data_blocks` blocks, its hash tree right behind them."""

    root_hash: str
    """SHA-256, lower-case hexadecimal."""
    data_blocks: int

    def kernel_word(self, device: str = "/dev/vda") -> str:
        """The word of the kernel command line that makes the checked device.

        A block that does not fit ends the guest: whoever changed it could change others just when
        they are read.
        """
        table = (
            f"0 {self.data_blocks * BLOCK // _SECTOR} verity 1 {device} {device} {BLOCK} {BLOCK} "
            f"{self.data_blocks} {self.data_blocks} sha256 {self.root_hash} - 1 panic_on_corruption"
        )
        return f'dm-mod.create="{DEVICE_NAME},,,ro,{table}"'


def append_tree(file: BinaryIO) -> Verity:
    """Write the hash tree of `file`, whole blocks and at least two, behind its end.

    The highest level comes first, the hashes of the data last.
    """
    size = file.seek(0, 2)
    blocks = size // BLOCK
    if size % BLOCK or blocks < 2:
        raise ValueError("a hash tree is made of whole blocks, two at least")
    file.seek(0)
    level = b"".join(_hash(file.read(BLOCK)) for _ in range(blocks))
    levels = []
    while True:
        padded = level.ljust(-(-len(level) // BLOCK) * BLOCK, b"\0")
        levels.append(padded)
        if len(padded) == BLOCK:
            break
        level = b"".join(_hash(padded[at : at + BLOCK]) for at in range(0, len(padded), BLOCK))
    file.seek(size)
    for each in reversed(levels):
        file.write(each)
    return Verity(_hash(levels[-1]).hex(), blocks)


def _hash(block: bytes) -> bytes:
    return hashlib.sha256(block).digest()
