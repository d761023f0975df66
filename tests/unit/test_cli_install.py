# SPDX-License-Identifier: Apache-2.0
"""`install` makes of an image what goes into a package."""

import os
import shutil
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from image_samples import image as sample_image

from sevkit.cli import main
from sevkit.errors import ImageError, RecipeError
from sevkit.image.manifest import load, text_of, verify, write_sums
from sevkit.image.output import install


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image whose folder has another name than a build gives it."""
    (tmp_path / "bench").mkdir()
    return Path(shutil.copytree(sample_image(tmp_path / "bench"), tmp_path / "copied"))


def call(*words: str | Path) -> str:
    result = CliRunner().invoke(main, ["install", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_copy_has_the_same_bytes_and_the_modes_of_a_package(
    image: Path, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        said = call(image, "--destdir", tmp_path / "root", "--prefix", "/usr/share/guests")
    finally:
        os.umask(before)
    manifest = load(image)
    name = tmp_path / "root" / "usr" / "share" / "guests" / "made-up"
    target = name / f"{manifest.version}-{manifest.build_id}"
    assert f"installed {target}" in said
    assert (name / "latest").readlink() == Path(target.name)
    assert verify(target) == []
    assert {path.name for path in target.iterdir()} == {path.name for path in image.iterdir()}
    for path in image.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes()
    for path in (tmp_path / "root", *(tmp_path / "root").rglob("*")):
        if not path.is_symlink():
            wanted = 0o755 if path.is_dir() else 0o644
            assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_installing_again_changes_nothing_and_a_signature_comes_along(
    image: Path, tmp_path: Path
) -> None:
    (image / "manifest.json.sig").write_text("a signature")
    target = install(image, tmp_path / "root")
    assert (target / "manifest.json.sig").read_text() == "a signature"
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    assert install(image, tmp_path / "root") == target
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before


def test_an_installed_image_follows_the_signature_of_its_source(
    image: Path, tmp_path: Path
) -> None:
    source, root = image / "manifest.json.sig", tmp_path / "root"
    installed = install(image, root) / source.name
    assert not installed.exists()
    for text in ("a signature", "another signature"):
        source.write_text(text)
        install(image, root)
        assert installed.read_text() == text
        assert stat.S_IMODE(installed.stat().st_mode) == 0o644
    source.unlink()
    install(image, root)
    assert not installed.exists()
    names = {path.name for path in (installed.parent, installed.parent.with_name("latest"))}
    assert {path.name for path in installed.parent.parent.iterdir()} == names


def test_a_copy_that_was_forged_since_is_not_called_installed(image: Path, tmp_path: Path) -> None:
    target = install(image, tmp_path / "root")
    forged = load(target).model_copy(update={"summary": "another"})
    (target / "manifest.json").write_text(text_of(forged))
    write_sums(target)
    assert verify(target) == []
    with pytest.raises(ImageError, match="is there with other bytes"):
        install(image, tmp_path / "root")
    shutil.rmtree(target)
    assert install(image, tmp_path / "root") == target


def test_an_image_that_was_changed_is_not_installed_and_leaves_nothing(
    image: Path, tmp_path: Path
) -> None:
    with (image / "vmlinuz").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ImageError, match="not as it was published"):
        call(image, "--destdir", tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_prefix_that_is_relative_is_refused(image: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="does not begin with /"):
        call(image, "--destdir", tmp_path / "root", "--prefix", "share")
    call(image, "--destdir", tmp_path / "root", "--prefix", "/share")
