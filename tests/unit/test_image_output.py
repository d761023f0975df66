# SPDX-License-Identifier: Apache-2.0
"""Image directories: published whole, once, by any number of builds at a time."""

import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from image_samples import image as sample_image

from sevkit.disk import FullDiskError, full_disk_explained
from sevkit.errors import BuildError, ImageError
from sevkit.image import output
from sevkit.image.manifest import verify


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "bench").mkdir()
    return sample_image(tmp_path / "bench")


def drafts(folder: Path) -> list[Path]:
    return list(folder.glob(".draft-*"))


def test_an_image_is_published_once_and_latest_follows(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "output" / "1.0-a", tmp_path / "output" / "1.0-b"
    assert output.publish(data, first)
    assert not output.publish(data, first)
    output.point_latest(first)
    assert output.publish(data, second)
    output.point_latest(second)
    assert verify(first) == verify(second) == []
    assert (tmp_path / "output" / "latest").resolve() == second
    assert drafts(tmp_path / "output") == []


def test_an_image_that_was_changed_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    image = tmp_path / "output" / "1.0-a"
    output.publish(data, image)
    (image / "vmlinuz").chmod(0o644)
    (image / "vmlinuz").write_bytes(b"other")
    with pytest.raises(ImageError, match="changed after"):
        output.publish(data, image)
    assert (image / "vmlinuz").read_bytes() == b"other"


def test_many_builds_publish_one_image_at_once(data: Path, tmp_path: Path) -> None:
    image = tmp_path / "output" / "1.0-a"
    answers: list[bool] = []

    def one() -> None:
        answers.append(output.publish(data, image))
        output.point_latest(image)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 7 + [True]
    assert verify(image) == []
    assert drafts(image.parent) == []


def test_what_a_killed_build_had_not_published_goes_with_the_next(
    data: Path, tmp_path: Path
) -> None:
    image = tmp_path / "output" / "1.0-a"
    code = textwrap.dedent(f"""
        import shutil, sys, time
        from pathlib import Path
        from sevkit.image import output
        copyfile = shutil.copyfile
        def slowly(*names):
            copyfile(*names)
            print("copied", flush=True)
            time.sleep(60)
        shutil.copyfile = slowly
        output.publish(Path({str(data)!r}), Path({str(image)!r}))
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with process:
        assert process.stdout
        assert process.stdout.readline() == b"copied\n"
        process.send_signal(signal.SIGKILL)
    assert len(drafts(image.parent)) == 1
    assert not image.exists()
    assert output.publish(data, image)
    assert drafts(image.parent) == []
    assert verify(image) == []


class TestNoRoom:
    def test_a_file_that_could_not_be_written_names_the_disk(self, tmp_path: Path) -> None:
        with (
            pytest.raises(FullDiskError, match="no space") as caught,
            full_disk_explained(tmp_path),
        ):
            Path("/dev/full").write_text("x")
        assert str(tmp_path) in str(caught.value)
        assert "sevkit gc" in caught.value.hint

    def test_a_tree_that_could_not_be_copied_names_the_disk(self, tmp_path: Path) -> None:
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "file").write_text("x")
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / "file").symlink_to("/dev/full")
        with (
            pytest.raises(FullDiskError, match="no space") as caught,
            full_disk_explained(tmp_path),
        ):
            shutil.copytree(tmp_path / "tree", tmp_path / "copy", dirs_exist_ok=True)
        assert "copy/file" in caught.value.why
        (tmp_path / "copy" / "file").unlink()
        (tmp_path / "copy" / "file").symlink_to("/nowhere/file")
        with pytest.raises(shutil.Error), full_disk_explained(tmp_path):
            shutil.copytree(tmp_path / "tree", tmp_path / "copy", dirs_exist_ok=True)

    def test_a_command_that_met_it_is_not_blamed(self, tmp_path: Path) -> None:
        said = "ld: final link failed: No space left on device"
        with pytest.raises(FullDiskError) as caught, full_disk_explained(tmp_path):
            raise BuildError("agent: gcc failed", why=said, log=tmp_path / "log")
        assert said in str(caught.value)
        assert caught.value.log == tmp_path / "log"

    def test_other_errors_and_one_told_already_pass_as_they_are(self, tmp_path: Path) -> None:
        with pytest.raises(BuildError, match="broke"), full_disk_explained(tmp_path):
            raise BuildError("it broke")
        with pytest.raises(PermissionError), full_disk_explained(tmp_path):
            raise PermissionError
        inner, outer = (full_disk_explained(tmp_path / name) for name in ("inner", "outer"))
        with pytest.raises(FullDiskError) as caught, outer, inner:
            Path("/dev/full").write_text("x")
        assert "inner" in caught.value.what
