# SPDX-License-Identifier: Apache-2.0
"""`clean` deletes what builds have made, whatever folder it is pointed at."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from image_samples import image as sample_image

from sevkit.cli import main
from sevkit.errors import RecipeError
from sevkit.image import output
from sevkit.store.store import Store

ID = "0123456789ab"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An output folder with an image, its proof, a draft and logs."""
    (tmp_path / "bench").mkdir()
    data, place = sample_image(tmp_path / "bench"), tmp_path / "output"
    image = place / "made-up" / f"1.0.0-{ID}"
    output.publish(data, image)
    output.point_latest(image)
    image.with_name(f"{image.name}.proof.json").write_text("{}")
    image.with_name(f".draft-{image.name}.aa").mkdir()
    (place / ".log").mkdir()
    (place / ".log" / f"kernel-{ID}.log").write_text("cc\n")
    return place


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    store = Store(root)
    (tmp_path / "blob").write_bytes(b"source")
    digest = "41cf6794ba4200b839c53531555f0f3998df4cbb01a4d5cb0b94e3ca5e23947d"
    store.add_blob(tmp_path / "blob", f"blob:{digest}")
    return root


def clean(output: Path, *words: str, store: Path | None = None) -> str:
    environment = {"SEVKIT_STORE": str(store or output.parent / "no-store")}
    result = CliRunner().invoke(main, ["--output", str(output), "clean", *words], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_images_and_logs_go_and_their_folder_with_them(place: Path) -> None:
    assert "deleted images in" in clean(place)
    assert not place.exists()
    assert "nothing to delete" in clean(place)


def test_a_dry_run_says_so_and_deletes_nothing(place: Path, store: Path) -> None:
    before = sorted(place.rglob("*"))
    said = clean(place, "-n", "--store", store=store)
    assert f"would delete {place}/made-up/1.0.0-{ID}/vmlinuz" in said
    assert f"would delete {store}/blobs/41" in said
    assert sorted(place.rglob("*")) == before
    assert (store / "blobs" / "41").is_dir()


def test_a_file_that_no_build_has_put_there_stays_wherever_it_lies(place: Path) -> None:
    foreign = [
        place / "thesis.txt",
        place / "thesis" / "latest",
        place / "made-up" / "thesis.txt",
        place / "made-up" / f"thesis-{ID}" / "thesis.txt",
        place / "made-up" / f"1.0.0-{ID}" / "thesis.txt",
        place / ".log" / "thesis.tex",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("years of work")
    said = clean(place)
    assert [path for path in foreign if not path.exists()] == []
    assert f"left {place}/thesis.txt: no build has put it there" in said
    assert f"left {place}/made-up/1.0.0-{ID}/thesis.txt" in said
    assert {path for path in place.rglob("*") if path.is_file()} == set(foreign)


def test_a_folder_with_nothing_of_ours_is_refused(place: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="holds no image") as refused:
        clean(precious)
    assert "thesis.txt" in str(refused.value)
    assert (precious / "thesis.txt").exists()
    clean(place)


def test_links_are_not_followed_but_an_output_that_is_one_is_cleaned(
    place: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    place.rename(elsewhere)
    place.mkdir()
    (place / "made-up").symlink_to(elsewhere / "made-up")
    (place / ".log").mkdir()
    (place / ".log" / "console.log").write_text("")
    assert f"left {place}/made-up" in clean(place)
    assert (elsewhere / "made-up" / "latest" / "vmlinuz").exists()
    link = tmp_path / "link"
    link.symlink_to(elsewhere)
    clean(link)
    assert link.is_symlink()
    assert list(elsewhere.iterdir()) == []


def test_a_digest_list_cannot_name_a_file_elsewhere(place: Path) -> None:
    image = place / "made-up" / f"1.0.0-{ID}"
    victim = place / "made-up" / "thesis.txt"
    victim.write_text("years of work")
    (image / "SHA256SUMS").chmod(0o644)
    (image / "SHA256SUMS").write_text(f"{'0' * 64}  ../thesis.txt\n")
    clean(place)
    assert victim.exists()
    assert (image / "vmlinuz").exists()
    assert not (image / "manifest.json").exists()


def test_the_store_goes_whole_but_for_what_is_not_the_store_s(place: Path, store: Path) -> None:
    foreign = [store / "thesis.txt", store / "tmp" / "thesis.txt"]
    for path in foreign:
        path.write_text("years of work")
    said = clean(place, "--store", store=store)
    assert f"left {store}/tmp/thesis.txt" in said
    assert {path for path in store.rglob("*") if path.is_file()} == set(foreign)
    for path in foreign:
        path.unlink()
    Store(store)
    clean(place, "--store", store=store)
    assert not store.exists()


def test_a_folder_that_is_no_store_is_refused_and_stays_as_it_was(
    place: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    (precious / "tmp").mkdir(parents=True)
    with pytest.raises(RecipeError, match="is no store"):
        clean(place, "--store", store=precious)
    assert [path.name for path in precious.iterdir()] == ["tmp"]
    assert place.exists()
