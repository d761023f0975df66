# SPDX-License-Identifier: Apache-2.0
"""What an image directory says of itself, taken to all that is made of it.

A changed manifest is written as sevkit would write it, with the digest that SHA256SUMS needs, and
then with the launch digests that it needs, so that what is behind those checks reads it too.
"""

import hashlib
import json
import shlex
import tomllib
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

import image_samples
from test_firmware_verifier import CHECKS
from test_rootfs_contents import contents

from sevkit.errors import RecipeError, SevkitError
from sevkit.exports import FORMATS, MODES, exported, subject_of
from sevkit.exports.qemu import arguments
from sevkit.exports.subject import Subject
from sevkit.image.diff import differences
from sevkit.image.manifest import MANIFEST, SUMS, load, text_of, verify
from sevkit.image.measured import measure_image, measurement_differences
from sevkit.image.shape import Measurement
from sevkit.printable import printable
from sevkit.rootfs.contents import read_contents, why

from .files import put, scratch


def with_images(folder: Path) -> None:
    """Images to change, and the same to compare with."""
    for name in ("changed", "other"):
        _images(folder / name)


def _images(folder: Path) -> list[Path]:
    """One whose firmware takes no hashes, one whose firmware checks them."""
    for kind in ("plain", "measured"):
        (folder / kind).mkdir(parents=True)
    return [
        image_samples.image(folder / "plain"),
        image_samples.measured_image(folder / "measured", CHECKS),
    ]


def manifest_seeds() -> list[bytes]:
    """The manifests of those images."""
    with scratch() as name:
        return [(each / MANIFEST).read_bytes() for each in _images(Path(name))]


def sums_seed() -> bytes:
    """SHA256SUMS of the first."""
    with scratch() as name:
        return (_images(Path(name))[0] / SUMS).read_bytes()


def take_manifest(data: bytes, folder: Path) -> None:
    """Load, verify, measure, compare and export an image that says `data`."""
    is_measured = hashlib.sha256(CHECKS).hexdigest().encode() in data
    place = Path("measured" if is_measured else "plain", "image")
    image, other = folder / "changed" / place, folder / "other" / place
    with suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(data), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        data = text.encode("utf-8", "surrogatepass")
    sums = (other / SUMS).read_text()
    _put_manifest(image, data, sums)
    manifest = load(image)
    told = [*verify(image), *measurement_differences(image, manifest), *manifest.remarks()]
    with suppress(SevkitError):
        rows = tuple(Measurement(**row.record()) for row in measure_image(image, manifest))
        measured = manifest.model_copy(update={"measurements": rows})
        _put_manifest(image, text_of(measured).encode(), sums)
        told += map(str, differences(other, image))
    "\n".join(told).encode()
    for mode in MODES:
        with suppress(SevkitError):
            subject = subject_of(image, mode=mode)
            for name in FORMATS:
                with suppress(SevkitError):
                    _check(name, exported(subject, name), subject)


def _put_manifest(image: Path, data: bytes, sums: str) -> None:
    others = [line for line in sums.splitlines(True) if not line.endswith(f" {MANIFEST}\n")]
    line = f"{hashlib.sha256(data).hexdigest()}  {MANIFEST}\n"
    put(image / MANIFEST, data)
    put(image / SUMS, "".join(sorted([*others, line], key=lambda one: one[66:])).encode())


def take_sums(data: bytes, folder: Path) -> None:
    """Verify and load an image whose SHA256SUMS is `data`."""
    image = folder / "changed" / "plain" / "image"
    put(image / SUMS, data)
    "\n".join(verify(image)).encode()
    load(image)


def contents_seed() -> bytes:
    """An account of an initramfs with each kind of path."""
    return json.dumps(contents()).encode()


def take_contents(data: bytes, _: Path) -> None:
    """Ask an account for each of its paths, and for one that is none."""
    found = read_contents(data, "contents.json")
    for path in [*(row["path"] for row in found["paths"]), "/lib/../libcap", "/"]:
        with suppress(RecipeError):
            printable("\n".join(why(found, path))).encode()


def _check(format_name: str, content: bytes, subject: Subject) -> None:
    """An export is one of its format, and holds no word that the rules of a launch don't have."""
    if format_name == "corim":
        return
    text = content.decode()
    if format_name == "qemu":
        head, script = text.split("\nset -eu\n")
        assert all(line.startswith("#") for line in head.split("\n")), head
        words = shlex.split(script.replace("\\\n", " "))
        assert words[2:-1] == arguments(subject), words
    elif format_name == "qemu-config":
        for line in text.split("\n"):
            assert not line or line[0] in "#[" or line.startswith("  "), line
    elif format_name == "libvirt":
        ElementTree.fromstring(content)
    elif format_name == "kata":
        assert tomllib.loads(text).keys() == {"hypervisor", "factory", "runtime"}
    else:
        json.loads(text)
