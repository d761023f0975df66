# SPDX-License-Identifier: Apache-2.0
"""Attestation reports: fields where the specification has them, and every way to be wrong."""

import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sevkit.cli import run
from sevkit.errors import RecipeError
from sevkit.measure.snp_report import Check, check, measurements_of, parse

MEASUREMENT = bytes(range(48))
DATA = bytes(range(100, 164))
POLICY = 0x30000
KNOWN = measurements_of([("EPYC-Milan, 2 vCPUs", MEASUREMENT.hex())])


def report(
    *,
    version: int = 3,
    policy: int = POLICY,
    vmpl: int = 0,
    measurement: bytes = MEASUREMENT,
    sign: Callable[[bytes], bytes] = lambda _: bytes(144),
) -> bytes:
    """A report as table ATTESTATION_REPORT lays it out; `sign` gives R and S of 72 bytes each."""
    made = bytearray(1184)
    struct.pack_into("<IIQ", made, 0x00, version, 4, policy)
    struct.pack_into("<II", made, 0x30, vmpl, 1)
    made[0x50:0x90] = DATA
    made[0x90:0xC0] = measurement
    made[0xC0:0xE0] = b"h" * 32
    made[0x180:0x188] = struct.pack("<Q", 0xD1730000_00000004)
    made[0x1A0:0x1E0] = b"c" * 64
    made[0x2A0 : 0x2A0 + 144] = sign(bytes(made[:0x2A0]))
    return bytes(made)


def verdicts(data: bytes, **options: object) -> dict[str, bool | None]:
    settings = {"measurements": KNOWN, "policy": POLICY, **options}
    return {each.name: each.passed for each in check(parse(data), **settings)}  # type: ignore[arg-type]


GOOD = {
    "version": True,
    "measurement": True,
    "policy": True,
    "no debugging": True,
    "vmpl": True,
    "report data": None,
    "signature": None,
}


def test_a_report_is_read_raw_and_as_hexadecimal_text() -> None:
    raw = report()
    made = parse(raw)
    assert made == parse(raw.hex().encode() + b"\n") == parse(raw.hex(" ", 16).upper().encode())
    assert (made.version, made.guest_svn, made.policy, made.vmpl) == (3, 4, POLICY, 0)
    assert (made.measurement, made.report_data) == (MEASUREMENT, DATA)
    assert (made.host_data, made.chip_id) == (b"h" * 32, b"c" * 64)
    assert made.reported_tcb == 0xD1730000_00000004


@pytest.mark.parametrize("data", [b"", bytes(1183), bytes(1185), b"0" * 2367, b"x" * 2368])
def test_what_is_no_report_is_refused(data: bytes) -> None:
    with pytest.raises(RecipeError, match="not an SNP attestation report"):
        parse(data)


def test_a_good_report_passes_and_says_of_which_launch_it_is() -> None:
    assert verdicts(report()) == GOOD
    found = {
        each.name: each.detail for each in check(parse(report()), measurements=KNOWN, policy=POLICY)
    }
    assert "EPYC-Milan, 2 vCPUs" in found["measurement"]
    assert found["policy"] == "0x30000, expected 0x30000; allows smt"


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"version": 1}, {"version"}),
        ({"measurement": bytes(48)}, {"measurement"}),
        ({"policy": POLICY | 1 << 19}, {"policy", "no debugging"}),
        ({"policy": POLICY | 1 << 18}, {"policy", "no debugging"}),
        ({"policy": POLICY & ~(1 << 16)}, {"policy"}),
        ({"vmpl": 1}, {"vmpl"}),
    ],
)
def test_each_thing_that_is_wrong_is_named(changes: dict[str, int], wrong: set[str]) -> None:
    found = verdicts(report(**changes))  # type: ignore[arg-type]
    assert {name for name, passed in found.items() if passed is False} == wrong


def test_a_policy_with_debugging_fails_also_when_it_is_the_one_expected() -> None:
    debug = POLICY | 1 << 19
    found = verdicts(report(policy=debug), policy=debug)
    assert (found["policy"], found["no debugging"]) == (True, False)


def test_the_callers_data_are_compared() -> None:
    assert verdicts(report(), report_data=DATA)["report data"] is True
    assert verdicts(report(), report_data=DATA[:-1] + b"\0")["report data"] is False


def test_launches_with_one_digest_are_told_together() -> None:
    rows = [("a", "00"), ("b", "00"), ("c", "11")]
    assert measurements_of(rows) == {"00": "a; b", "11": "c"}


def openssl(*words: str | Path, stdin: bytes = b"") -> bytes:
    made = subprocess.run(["openssl", *words], input=stdin, capture_output=True, check=True)
    return made.stdout


def certificate(folder: Path, curve: str) -> tuple[Path, Path]:
    """A key and a certificate of it, in place of a chip's own."""
    key, made = folder / f"{curve}.key", folder / f"{curve}.crt"
    openssl("ecparam", "-name", curve, "-genkey", "-noout", "-out", key)
    openssl("req", "-new", "-x509", "-key", key, "-subj", "/CN=SEV-VCEK", "-out", made)
    return key, made


def signer(key: Path) -> Callable[[bytes], bytes]:
    def sign(data: bytes) -> bytes:
        signature = openssl("dgst", "-sha384", "-sign", key, stdin=data)
        lines = openssl("asn1parse", "-inform", "DER", stdin=signature).decode().splitlines()
        numbers = [int(line.rpartition(":")[2], 16) for line in lines if "INTEGER" in line]
        return b"".join(number.to_bytes(72, "little") for number in numbers)

    return sign


def test_a_signature_holds_for_its_own_key_and_bytes_alone(tmp_path: Path) -> None:
    key, vcek = certificate(tmp_path, "secp384r1")
    (tmp_path / "other").mkdir()
    _, other = certificate(tmp_path / "other", "secp384r1")
    signed = report(sign=signer(key))
    assert verdicts(signed, vcek=vcek) == {**GOOD, "signature": True}
    assert verdicts(signed, vcek=other)["signature"] is False
    for place in (0xC0, 0x29F, 0x2A0, 0x2A0 + 72):
        changed = bytearray(signed)
        changed[place] ^= 1
        assert verdicts(bytes(changed), vcek=vcek)["signature"] is False
    unsigned = signed[:0x2A0] + bytes(512)
    assert verdicts(unsigned, vcek=vcek)["signature"] is False
    oversized = signed[:0x2A0] + b"\xff" * 512
    assert verdicts(oversized, vcek=vcek)["signature"] is False
    der = tmp_path / "vcek.der"
    openssl("x509", "-in", vcek, "-outform", "DER", "-out", der)
    assert verdicts(signed, vcek=der)["signature"] is True


def test_what_is_no_certificate_of_a_chip_is_refused(tmp_path: Path) -> None:
    _, small = certificate(tmp_path, "prime256v1")
    with pytest.raises(RecipeError, match="no P-384 key"):
        verdicts(report(), vcek=small)
    small.write_text("nothing")
    with pytest.raises(RecipeError, match="is not a certificate"):
        verdicts(report(), vcek=small)


def test_a_check_that_nobody_asked_for_neither_passes_nor_fails() -> None:
    [unasked] = [
        each
        for each in check(parse(report()), measurements={}, policy=0)
        if each.name == "signature"
    ]
    assert unasked == Check("signature", None, "not checked, --vcek was not given")


Verify = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Iterator[Verify]:
    """The command as a user types it: its status, what it prints, what it complains about."""

    def run_it(*words: str | Path) -> tuple[int, str, str]:
        status = run(["verify-report", *map(str, words)])
        said = capsys.readouterr()
        return status, said.out, said.err

    before = signal.getsignal(signal.SIGTERM)
    yield run_it
    signal.signal(signal.SIGTERM, before)


def test_the_command_says_what_it_checked_and_its_status_whether_all_held(
    tmp_path: Path, verify: Verify
) -> None:
    key, vcek = certificate(tmp_path, "secp384r1")
    path = tmp_path / "report"
    path.write_bytes(report(sign=signer(key)))
    good: list[str | Path] = [path, tmp_path, "--measurement", MEASUREMENT.hex()]
    status, told, complaint = verify(*good, "--report-data", DATA.hex(), "--vcek", vcek)
    assert (status, complaint) == (0, "")
    lines = told.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 7
    status, told, _ = verify(*good)
    assert (status, told.count("\n-  ")) == (0, 2)
    for policy in ("0x30000", "30000", "0X30000", "0000000000030000"):
        assert verify(*good, "--policy", policy)[0] == 0
    for words, wrong in (
        (["--policy", "196608"], "policy"),
        (["--measurement", bytes(48).hex()], "measurement"),
        (["--policy", "0xb0000"], "policy"),
        (["--vmpl", "1"], "vmpl"),
        (["--report-data", bytes(64).hex()], "report data"),
    ):
        status, told, _ = verify(*good, *words)
        assert status == 4
        [line] = [line for line in told.splitlines() if line.startswith("WRONG")]
        assert line.split(None, 1)[1].startswith(wrong)


def test_a_call_that_is_wrong_is_told_so(tmp_path: Path, verify: Verify) -> None:
    path = tmp_path / "report"
    path.write_bytes(report())
    for words, cause in (
        (["--measurement", "00"], "96 hexadecimal digits"),
        (["--measurement", MEASUREMENT.hex(), "--policy", "x"], "up to 16 hexadecimal digits"),
        (["--measurement", MEASUREMENT.hex(), "--policy", "-3"], "up to 16 hexadecimal digits"),
        (["--measurement", MEASUREMENT.hex(), "--policy", "1" * 17], "up to 16 hexadecimal"),
        (["--measurement", MEASUREMENT.hex(), "--report-data", "zz"], "128 hexadecimal digits"),
    ):
        status, _, complaint = verify(path, tmp_path, *words)
        assert status == 2
        assert cause in complaint
    status, _, complaint = verify(path, tmp_path)
    assert status == 1
    assert "manifest.json can't be read" in complaint
