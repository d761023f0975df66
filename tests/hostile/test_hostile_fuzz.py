# SPDX-License-Identifier: Apache-2.0
"""A second of mutations for each reader; what mutations found once is refused for good."""

import io
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from elf_samples import a_loader, an_elf
from image_samples import image

from sevkit.errors import BuildError, ImageError, RecipeError, SourceError
from sevkit.image.manifest import load, read_published
from sevkit.oci.image import find_image
from sevkit.patches import read_series
from sevkit.rootfs.cpio import Directory, File, Symlink, write
from sevkit.rootfs.elf import Elf
from sevkit.rootfs.loader import FolderTree, closure

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests/fuzz/found"
NAMES = re.findall(r'Target\(\s*"([a-z-]+)"', (ROOT / "tests/fuzz/targets.py").read_text())


def fuzz(*words: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", *words],
        cwd=ROOT, env={"PYTHONPATH": "builder"}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("half", [0, 1])
def test_every_reader_answers_or_refuses_whatever_it_is_given(half: int, tmp_path: Path) -> None:
    names = [name for name in NAMES[half::2] if name != "real-firmware"]
    assert len(names) > 10
    told = fuzz(*names, "--runs", "200", "--crashes", tmp_path)
    for name in names:
        assert re.search(rf"^{name}: (200|40|10) runs, 0 crashes", told, re.M), told
    assert re.search(rf"^all of {len(names)}: \d+ runs, 0 crashes, ", told, re.M)


def test_every_reader_takes_what_mutations_start_from_as_it_should() -> None:
    """A reader that refuses its seeds is hardly tested by their mutations."""
    told = fuzz("all", "--starts")
    for name in NAMES:
        assert re.search(rf"^{name} start 0: answered", told, re.M) or name == "real-firmware"


INPUTS = """
import hashlib, sys, time
if sys.argv[1] == "later":
    localtime = time.localtime
    time.time = lambda: 2e9
    time.localtime = lambda *_: localtime(2e9)
from tests.fuzz import __main__ as runner, runs
for target in runner.TARGETS.values():
    inputs = b"".join(runs.input_of(target, number) for number in range(len(target.starts) + 5))
    print(target.name, hashlib.sha256(inputs).hexdigest())
"""


def test_a_run_has_the_same_input_at_another_time() -> None:
    """The archives among the seeds took the date of the day."""
    told = [
        subprocess.run(
            [sys.executable, "-c", INPUTS, when],
            cwd=ROOT, env={"PYTHONPATH": "builder"}, text=True, capture_output=True, check=True,
        ).stdout
        for when in ("now", "later")
    ]  # fmt: skip
    assert told[0] == told[1]
    assert told[0].count("\n") >= len(NAMES) - 1


def test_a_start_that_is_taken_otherwise_would_be_reported() -> None:
    script = (
        "import sys; sys.argv[1:] = ['snp-report', '--starts']\n"
        "import dataclasses; from tests.fuzz import __main__ as runner\n"
        "target = runner.TARGETS['snp-report']\n"
        "runner.TARGETS['snp-report'] = dataclasses.replace(target, refused=target.seeds)\n"
        "sys.exit(runner.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT, env={"PYTHONPATH": "builder"}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "snp-report start 2: answered" in done.stdout


def test_a_crash_would_be_kept_and_reported(tmp_path: Path) -> None:
    """The runner itself: a target that accepts no refusal crashes at the first one."""
    script = (
        "import sys; sys.argv[1:] = ['snp-report', '--runs', '50', '--crashes', sys.argv[1]]\n"
        "import dataclasses; from tests.fuzz import __main__ as runner\n"
        "target = runner.TARGETS['snp-report']\n"
        "runner.TARGETS['snp-report'] = dataclasses.replace(target, refusals=())\n"
        "sys.exit(runner.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "kept"],
        cwd=ROOT, env={"PYTHONPATH": "builder"}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    [kept] = (tmp_path / "kept").iterdir()
    assert f"kept as {kept}" in done.stdout
    assert "not an SNP attestation report" in done.stdout
    assert "snp-report: refused\n" in fuzz("snp-report", "--again", kept)


BEYOND_A_LIMIT = """
import ctypes, dataclasses, pathlib, sys, time
from tests.fuzz import __main__ as runner, files, trial
from sevkit.errors import SevkitError

trial._MOST_SECONDS = 0.3
files._IN_MEMORY = pathlib.Path(sys.argv.pop(2)) / "scratch"

def waits():
    while True:
        pass

def catches():
    try:
        waits()
    except Exception:
        raise SevkitError("it went wrong")

def called_from_c():
    back = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    numbers = (ctypes.c_int * 2)(2, 1)
    def compare(*_):
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            pass
        return 0
    ctypes.CDLL(None).qsort(numbers, 2, 4, back(compare))

def dies():
    ctypes.string_at(8)

def wants_memory():
    try:
        bytearray(4 << 30)
    except MemoryError as error:
        raise SevkitError("it went wrong") from error

def refuses():
    raise SevkitError("it is none")

reader = globals()[sys.argv.pop(1)]
target = dataclasses.replace(runner.TARGETS["snp-report"], run=lambda *_: reader())
runner.TARGETS["snp-report"] = target
sys.exit(runner.main())
"""


@pytest.mark.parametrize(
    ("reader", "told"),
    [
        ("waits", "more than 0.3 seconds"),
        ("catches", "more than 0.3 seconds"),
        ("called_from_c", "answered only after 0.3 seconds"),
        ("wants_memory", "MemoryError"),
        ("dies", "the process ended with -11"),
        ("refuses", ""),
    ],
)
def test_no_reader_hides_that_it_went_beyond_a_limit(
    reader: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    words = ["snp-report", "--runs", "2", "--crashes", tmp_path / "kept"]
    done = subprocess.run(
        [sys.executable, "-c", BEYOND_A_LIMIT, reader, tmp_path, *words],
        cwd=ROOT, env={"PYTHONPATH": "builder"}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == bool(told), done.stdout + done.stderr
    assert told in done.stdout
    assert not list((tmp_path / "scratch").iterdir())
    kept = {path.name: path.stat().st_size for path in tmp_path.glob("kept/*")}
    assert kept.get("snp-report-0") == (1184 if told else None)
    assert f"snp-report: 2 runs, {2 if told else 0} crashes" in done.stdout


GUIDED = """
import dataclasses, sys
import atheris
from tests.fuzz import guided
from sevkit.errors import SevkitError

@atheris.instrument_func
def reader(data, _):
    if data[:1] == b"/":
        if data[1:2] == b" ":
            if data[2:3] == b"/":
                if data[3:4] == b" ":
                    if data[4:5] == b"/":
                        if data[5:6] == b" ":
                            raise %s("found")

target = dataclasses.replace(guided.TARGETS["snp-report"], run=reader, seeds=[b"nothing"])
guided.TARGETS["snp-report"] = target
guided.main()
"""
needs_atheris = pytest.mark.skipif(
    find_spec("atheris") is None, reason="no atheris for this Python: no guided fuzzing was tested"
)


@needs_atheris
@pytest.mark.parametrize("error", ["RuntimeError", "SevkitError"])
def test_guided_mutations_find_what_chance_would_not(error: str, tmp_path: Path) -> None:
    """Six bytes in a row, one after the other. A refusal behind them is no crash."""
    words = ["snp-report", "--runs", "40000", "--crashes", tmp_path / "kept"]
    done = subprocess.run(
        [sys.executable, "-c", GUIDED % error, *words],
        cwd=ROOT, env={"PYTHONPATH": "builder"}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert ": 40000 guided runs" in done.stdout, done.stderr
    kept = [path.read_bytes() for path in tmp_path.glob("kept/*")]
    if error == "RuntimeError":
        assert done.returncode == 1
        assert [data[:6] for data in kept] == [b"/ / / "]
    else:
        assert (done.returncode, kept) == (0, [])


@needs_atheris
@pytest.mark.parametrize("name", ["elf", "lock", "patch"])
def test_readers_answer_or_refuse_what_guided_mutations_make(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", name, "--runs", "1000", "--crashes", tmp_path],
        cwd=ROOT, env={"PYTHONPATH": "builder"}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.search(r"1000 guided runs, 0 crashes, .*?, (\d+) inputs that reached", done.stdout)
    assert told is not None
    assert int(told[1]) > 2


def test_an_offset_that_no_file_has_is_a_malformed_elf_file() -> None:
    """Found by mutation: the version table of the kept input lies at the end of 64 bits."""
    damaged = bytes.fromhex((DATA / "elf-overflow.hex").read_text())
    elf = Elf(damaged, "evil")
    with pytest.raises(BuildError, match="evil is a malformed ELF file"):
        _ = elf.needed_versions
    good = an_elf(needed=["a"], interpreter="/lib/ld", wants={"a": ["V1"]}, imports=["f@V1"])
    assert Elf(good, "good").needed_versions


def test_a_directory_that_the_kernel_takes_for_the_end_is_refused() -> None:
    for inside in ("/TRAILER!!!", "/TRAILER!!!/file"):
        with pytest.raises(BuildError, match="the mark of an archive's end"):
            write([File(path=inside, data=b"")], io.BytesIO())
    write([Directory(path="/a/TRAILER!!!"), Symlink(path="/b", target="TRAILER!!!")], io.BytesIO())


def test_a_library_with_a_nul_in_its_name_is_missing(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/good").write_bytes(b"#!/lib/ld\n")
    (tmp_path / "bin/evil").write_bytes(b"#!/lib/l\0d\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/ld").write_bytes(a_loader())
    assert "/lib/ld" in closure(FolderTree(tmp_path, {}), ["/bin/good"]).files
    (tmp_path / "bin/elf").write_bytes(an_elf(needed=["x"], interpreter="/lib/ld"))
    for name in ("/bin/evil", "/bin/elf", "/bin/l\0"):
        with pytest.raises(BuildError):
            closure(FolderTree(tmp_path, {}), [name])


@pytest.mark.parametrize("name", ["one\0.patch", "x" * 300, "x/" * 200 + "y"])
def test_a_patch_that_no_file_can_be_called_is_refused_with_its_line(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "series").write_text(f"# text\n{name}\n")
    with pytest.raises(RecipeError, match=r"series:2: this is no name of a file"):
        read_series(tmp_path)


def test_a_manifest_of_an_image_that_is_a_list_is_refused(tmp_path: Path) -> None:
    from hashlib import sha256

    blob = b"[]"
    digest = sha256(blob).hexdigest()
    (tmp_path / "blobs/sha256").mkdir(parents=True)
    (tmp_path / "blobs/sha256" / digest).write_bytes(blob)
    index = '{"manifests": [{"digest": "sha256:%s"}]}' % digest  # noqa: UP031
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(SourceError, match="no whole container image"):
        find_image("oci", str(tmp_path), tmp_path / "work")


@pytest.mark.parametrize("size", [1 << 40, 10**30])
def test_a_file_that_is_said_to_be_larger_than_memory_is_not_as_published(
    size: int, tmp_path: Path
) -> None:
    folder = image(tmp_path)
    manifest = load(folder)
    assert read_published(folder, manifest, "kernel") == (folder / "vmlinuz").read_bytes()
    kernel = manifest.files["kernel"].model_copy(update={"size": size})
    evil = manifest.model_copy(update={"files": {**manifest.files, "kernel": kernel}})
    with pytest.raises(ImageError, match=f"it has 8192 of the {size} bytes"):
        read_published(folder, evil, "kernel")
