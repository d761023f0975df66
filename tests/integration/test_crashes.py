# SPDX-License-Identifier: Apache-2.0
"""Builds that die or run out of disk: what is left is whole, and the next build succeeds.

The made-up plan of tests/crash_lab.py goes through many such ends, a real recipe through a few.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import crash_lab
import pytest
from crash_lab import Score, damage, leaked, remains, run_all, survived

from sevkit.store.listing import list_tree
from sevkit.store.store import Store, default_root

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS, FULL_DISKS = 200, 50
Sevkit = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def scores() -> dict[str, Score]:
    return run_all(KILLS, FULL_DISKS, seed=random.SystemRandom().randrange(1 << 30))


@pytest.mark.parametrize(("end", "tried"), [("SIGKILL", KILLS), ("full disk", FULL_DISKS)])
def test_after_a_bad_end_at_a_random_moment_all_is_whole_and_the_next_build_succeeds(
    scores: dict[str, Score], end: str, tried: int
) -> None:
    score = scores[end]
    print(f"{end}: survived {survived(score)} of {score.tried} at {len(score.points)} points")
    assert score.failures == []
    assert score.tried == tried
    assert len(score.points) >= 3, "the trials all ended at the same point"


# --- a real recipe, through the command --------------------------------------------------------

RECIPE = "sev-guest-ovmf"
STAGES = [f"{RECIPE}:{stage}" for stage in ("firmware", "agent", "initramfs")]
SIGNS = {
    **{
        stage: f"output/.log/{stage}-*.log" for stage in ("agent", "initramfs", "firmware", "image")
    },
    "publication": f"output/{RECIPE}/.draft-*",
}
"""What is there as soon as a build is at a stage, or at what follows the last one."""
LONGEST_SECONDS = 0.5


@pytest.fixture(scope="module")
def image(build_image: Callable[..., Path]) -> Path:
    return build_image(RECIPE)


@pytest.fixture(scope="module")
def fetched(sevkit: Sevkit, image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the kernel of `image`, and all that the rest of it is built from."""
    whole, store = default_root(os.environ), tmp_path_factory.mktemp("fetched") / "store"
    shutil.copytree(whole / "pins", store / "pins")
    shown = sevkit("show", RECIPE)
    kernel = re.search(r"(?m)^kernel +([0-9a-f]{12})  built$", shown.stdout)
    assert kernel is not None, shown.stdout
    [entry] = whole.glob(f"entries/*/{kernel[1]}*")
    blobs = [
        Store(whole).blob(row["reference"])
        for row in json.loads((image / "manifest.json").read_bytes())["sources"]
        if row["source"] != "linux" and row["reference"].startswith("blob:")
    ]
    for path in (entry, *blobs):
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        (store / path.relative_to(whole)).parent.mkdir(parents=True, exist_ok=True)
        copy(path, store / path.relative_to(whole))
    return store


@pytest.mark.network
@pytest.mark.parametrize("blow_at", SIGNS)
def test_a_real_build_that_was_killed_leaves_all_whole_and_the_next_one_succeeds(
    sevkit: Sevkit, image: Path, fetched: Path, tmp_path: Path, blow_at: str
) -> None:
    longest, status, place = LONGEST_SECONDS, 0, tmp_path / "place"
    words = ["--output", str(place / "output"), "build", RECIPE, "--offline", "--ci"]
    environment = {"SEVKIT_STORE": str(place / "store")}
    while status == 0:  # it was faster than the blow
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(fetched, place / "store")
        process = subprocess.Popen(
            [sys.executable, "-m", "sevkit", *words],
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not list(place.glob(SIGNS[blow_at])) and process.poll() is None:
            time.sleep(0.001)
        longest *= random.uniform(0.2, 0.9)
        time.sleep(longest)
        process.send_signal(signal.SIGKILL)
        status = process.wait()
    assert status == -signal.SIGKILL
    assert [*leaked(place), *damage(place)] == []
    good = sevkit(*words, env=environment)
    assert good.returncode == 0, good.stderr
    assert [*damage(place), *remains(place)] == []
    latest = place / "output" / RECIPE / "latest"
    assert latest.resolve().name == image.name
    assert list_tree(latest.resolve()) == list_tree(image)


@pytest.mark.network
@pytest.mark.usefixtures("mirror")
@pytest.mark.parametrize("spare_kib", [600, 5000])
def test_a_real_build_on_a_full_disk_says_so_once_and_succeeds_with_more_room(
    fetched: Path, tmp_path: Path, spare_kib: int
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    used_kib = sum(-(-path.stat().st_size // 4096) * 4 for path in fetched.rglob("*"))
    build = (
        f"SEVKIT_STORE={disk}/store {sys.executable} -m sevkit --output {tmp_path}/output build "
        f"{' '.join(STAGES)} --offline --ci"
    )
    script = (
        f"mount -t tmpfs -o size={used_kib + spare_kib}k tmpfs {disk} && "
        f"cp -r {fetched} {disk}/store && "
        f"{{ {build} 2>{tmp_path}/said; echo status $?; }} && "
        f"mount -o remount,size=2g {disk} && {build}"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "status 3" in done.stdout, done.stderr
    said = (tmp_path / "said").read_text()
    assert "no space left on the disk that holds" in said
    assert said.count("sevkit: error:") == 1
    assert "Traceback" not in said + done.stderr
    assert done.returncode == 0, done.stderr


def test_a_full_disk_under_the_images_is_named_and_not_the_store_s(tmp_path: Path) -> None:
    """The store has all the room there is."""
    (tmp_path / "output").mkdir()
    build = f"""
import sys
sys.path.insert(0, {str(Path(crash_lab.__file__).parent)!r})
from pathlib import Path
from crash_lab import FullDiskError, Lab, damage
place = Path({str(tmp_path)!r})
try:
    Lab.in_folder(place / "lab").build(place)
except FullDiskError as error:
    print(error)
print("damage:", *damage(place))
"""
    (tmp_path / "build.py").write_text(build)
    script = (
        f"mount -t tmpfs -o size=20k tmpfs {tmp_path}/output && "
        f"{sys.executable} {tmp_path}/build.py && "
        f"mount -o remount,size=2m {tmp_path}/output && "
        f"{sys.executable} {tmp_path}/build.py && ls {tmp_path}/output/made-up/latest/"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, rest = done.stdout.split("damage:\n", 1)
    assert first.startswith(f"no space left on the disk that holds {tmp_path}/output")
    assert "--output" in first
    assert rest.startswith("damage:\n"), "with room it succeeds"
    assert "manifest.json" in rest
