# SPDX-License-Identifier: Apache-2.0
"""An image whose launch digests were forged, with sums that agree: no verb hands them on."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from export_samples import changed
from test_measure_id_block import write_key

from sevkit.cli import run
from sevkit.doctor.rules import needs_of_image
from sevkit.errors import ImageError
from sevkit.exports import subject_of
from sevkit.image import diff, output, signature
from sevkit.image.manifest import load, verify
from sevkit.image.published import differences, published


def forged(image: Path, to: Path, digits: int = 96) -> Path:
    """A copy whose SNP launches have other digests, of that many hexadecimal digits."""
    rows = [row.model_dump() for row in load(image).measurements]
    for row in rows:
        if row["mode"] == "sev-snp":
            row["digest"] = "0" * digits
    return changed(image, to, measurements=tuple(rows))


@pytest.mark.parametrize(
    "use",
    [
        published,
        signature.message,
        subject_of,
        lambda image: subject_of(image, id_key=write_key(image.parent / "id.pem", KEY)),
        lambda image: output.install(image, image.parent / "root"),
        lambda image: diff.differences(image, image),
    ],
    ids=["published", "message", "export", "id-key", "install", "diff"],
)
@pytest.mark.parametrize("digits", [64, 96])
def test_forged_launch_digests_are_not_handed_on(
    use: Callable[[Path], object], digits: int, measured: Path, tmp_path: Path
) -> None:
    use(changed(measured, tmp_path / "copy"))
    evil = forged(measured, tmp_path / "evil", digits)
    assert verify(evil) == []
    with pytest.raises(ImageError, match="is not as it was published") as caught:
        use(evil)
    assert caught.value.why.count(f"not {'0' * digits} (kernel)") == 2


KEY = ec.generate_private_key(ec.SECP384R1())


def test_verify_and_doctor_name_them(
    measured: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evil = forged(measured, tmp_path / "evil")
    assert (len(differences(evil)), differences(measured)) == (2, [])
    assert list(needs_of_image(evil)) == [*load(evil).possible_modes, "none"]
    assert needs_of_image(evil)["none"].differences == tuple(differences(evil))
    assert run(["verify", str(evil)]) == 4
    assert "2 differ" in capfd.readouterr().out


def test_a_file_behind_a_symbolic_link_is_not_exported(measured: Path, tmp_path: Path) -> None:
    image = changed(measured, tmp_path / "image")
    assert subject_of(image)
    (image / "vmlinuz").rename(tmp_path / "vmlinuz")
    (image / "vmlinuz").symlink_to(tmp_path / "vmlinuz")
    with pytest.raises(ImageError, match="vmlinuz: is a symbolic link"):
        subject_of(image)
