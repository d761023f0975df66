# SPDX-License-Identifier: Apache-2.0
"""Files by http: resumed after a broken transfer, retried with growing pauses, from any mirror.

The digest decides in the end; until then a server is believed nothing, least of all lengths.
"""

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sevkit.addresses import shown_address
from sevkit.canonical import sha256_of
from sevkit.errors import SourceError
from sevkit.sources.pins import Pin, Progress

if TYPE_CHECKING:
    import requests

    from sevkit.sources.session import Watchdog

ATTEMPTS = 4
LIMIT_BYTES = 8 << 30
_CONNECT_SECONDS = 10
_READ_SECONDS = 30
_SLOW_SECONDS = 60
_SLOW_BYTES_A_SECOND = 1024
_PAUSE_SECONDS = 0.5
_TRANSFERS = 100
_GOOD_PIECE = 1 << 20
_REDIRECTS = 5
_BLOCK = 1 << 16
_LENGTH_DIGITS = 20
_TROUBLE_CHARACTERS = 300


class _TransferError(Exception):
    """A transfer broke in a way that another try may mend."""


class _RefusedError(Exception):
    """An answer that will be the same next time."""


def fetch_url(
    pin: Pin, destination: Path, progress: Progress, *, limit_bytes: int = LIMIT_BYTES
) -> None:
    """Write the file of `pin` to `destination`, going on from what is there.

    Raises `SourceError` naming each mirror and what was wrong with it.
    """
    wanted = pin.reference.partition(":")[2]
    if destination.exists() and sha256_of(destination) == wanted:
        return
    troubles = []
    for url in pin.origin["url"].split("\n"):
        trouble = _from_mirror(url, wanted, destination, progress, limit_bytes)
        if not trouble:
            return
        trouble = shown_address(" ".join(trouble.split()))
        troubles.append(f"{shown_address(url)}: {trouble[:_TROUBLE_CHARACTERS]}")
    raise SourceError(
        f"{pin.name} could not be fetched",
        why="\n".join(troubles),
        hint="check the url and sha256 of the source in the recipe, and this host's network",
    )


def _from_mirror(
    url: str, wanted: str, destination: Path, progress: Progress, limit_bytes: int
) -> str:
    """Try one mirror; what was wrong with it, empty when the right file is complete.

    Bytes that were here before may be of another file, so a wrong digest counts only for a file
    that came from this mirror as a whole.
    """
    for _ in range(2):
        was_there = _size_of(destination) > 0
        trouble = _transferred(url, destination, progress, limit_bytes)
        if trouble:
            return trouble
        found = sha256_of(destination)
        if found == wanted:
            return ""
        destination.unlink()
        if not was_there:
            break
    return f"its SHA-256 is {found}, not {wanted}"


def _transferred(url: str, destination: Path, progress: Progress, limit_bytes: int) -> str:
    """Bring a file here in as many pieces as it takes; why that failed, empty when it is complete.

    A try that brought a good deal further does not count against the number of tries.
    """
    trouble = ""
    failures = 0
    for _ in range(_TRANSFERS):
        before = _size_of(destination)
        try:
            _transfer(url, destination, progress, limit_bytes)
            return ""
        except _RefusedError as error:
            destination.unlink(missing_ok=True)
            return str(error)
        except _TransferError as error:
            trouble = str(error)
        failures = 1 if _size_of(destination) - before >= _GOOD_PIECE else failures + 1
        if failures == ATTEMPTS:
            break
        time.sleep(_PAUSE_SECONDS * 2 ** (failures - 1) * random.uniform(0.8, 1.2))
    return f"{trouble} ({failures} tries)"


def _transfer(url: str, destination: Path, progress: Progress, limit_bytes: int) -> None:
    from sevkit.sources.session import Watchdog

    slow = _TransferError(f"sends less than {_SLOW_BYTES_A_SECOND} bytes a second")
    with Watchdog(_SLOW_SECONDS, _SLOW_SECONDS * _SLOW_BYTES_A_SECOND) as watchdog:
        try:
            _receive(url, destination, progress, limit_bytes, watchdog)
        except (_TransferError, _RefusedError) as error:
            if watchdog.has_cut:
                raise slow from error
            raise
    if watchdog.has_cut:  # which may look like the end of the file
        raise slow


def _receive(
    url: str, destination: Path, progress: Progress, limit_bytes: int, watchdog: "Watchdog"
) -> None:
    have = _size_of(destination)
    with _answer(url, have, watchdog) as (response, resumed):
        done = have if resumed else 0
        total = _total(response, done)
        if total is not None and total > limit_bytes:
            raise _RefusedError(f"says it is {total} bytes, more than the {limit_bytes} allowed")
        with destination.open("ab" if resumed else "wb") as file:
            progress(done, total, "")
            for block in _blocks(response):
                done += len(block)
                watchdog.came(len(block))
                if done > limit_bytes:
                    raise _RefusedError(f"sends more than the {limit_bytes} bytes allowed")
                file.write(block)
                progress(done, total, "")
        if total is not None and done != total:
            raise _TransferError(f"broke off after {done} of {total} bytes")


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def _answer(
    url: str, have: int, watchdog: "Watchdog"
) -> Iterator[tuple["requests.Response", bool]]:
    """The server's answer, and whether it goes on after the `have` bytes that are here."""
    import requests
    import urllib3

    from sevkit.sources.session import Session

    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with Session(watchdog.guard) as session:
        try:
            response = _follow(session, url, headers)
            if have and not _goes_on(response, have):
                response.close()
                del headers["Range"]
                response = _follow(session, url, headers)
        except requests.RequestException as error:
            raise _TransferError(_in_words(error)) from error
        except (ValueError, urllib3.exceptions.HTTPError) as error:
            raise _RefusedError(f"gives an answer that makes no sense: {error}") from error
        with response:
            status = response.status_code
            if status in (429, 500, 502, 503, 504):
                raise _TransferError(f"answers {status} {response.reason}")
            if status not in (200, 206):
                raise _RefusedError(f"answers {status} {response.reason}")
            resumed = "Range" in headers and status == 206
            if status == 206 and not resumed:
                raise _RefusedError("sends a part of the file that nobody asked for")
            yield response, resumed


def _goes_on(response: "requests.Response", have: int) -> bool:
    """Whether an answer to a Range request can be used: the rest, the whole, or a trouble."""
    if response.status_code == 416:
        return False
    start = response.headers.get("Content-Range", "").removeprefix("bytes ")
    return response.status_code != 206 or start.startswith(f"{have}-")


def _follow(session: Any, url: str, headers: dict[str, str]) -> "requests.Response":
    """The answer after redirections: only to http(s), and never from https back to http."""
    timeout = (_CONNECT_SECONDS, _READ_SECONDS)
    for _ in range(_REDIRECTS + 1):
        response: requests.Response = session.get(
            url, headers=headers, stream=True, timeout=timeout, allow_redirects=False
        )
        if not response.is_redirect:
            return response
        from urllib.parse import urljoin

        response.close()
        location = response.headers["Location"].encode("latin-1").decode("utf-8")
        target = urljoin(url, location)
        if not target.startswith(("https://", "http://")):
            raise _RefusedError(f"redirects to {target}, which is not http")
        if url.startswith("https://") and not target.startswith("https://"):
            raise _RefusedError(f"redirects from https to {target}")
        url = target
    raise _RefusedError(f"redirects more than {_REDIRECTS} times")


def _blocks(response: "requests.Response") -> Iterator[bytes]:
    import requests
    import urllib3

    try:
        while block := response.raw.read1(_BLOCK, decode_content=False):
            yield block
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise _TransferError(_in_words(error)) from error


def _total(response: "requests.Response", done: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    if not (length.isascii() and length.isdigit()):
        return None
    if len(length) > _LENGTH_DIGITS:
        raise _RefusedError(f"says its length in {len(length)} digits")
    return done + int(length)


def _in_words(error: Exception) -> str:
    """The innermost cause, where it is a known one."""
    text = str(error) or type(error).__name__
    for known, words in (
        ("NameResolution", "the host's name can't be resolved"),
        ("timed out", "does not answer in time"),
        ("Connection refused", "refuses the connection"),
        ("IncompleteRead", "broke off in the middle"),
        ("certificate has expired", "its certificate has expired"),
        ("certificate is not valid for", "its certificate is another host's"),
        ("CERTIFICATE_VERIFY_FAILED", "its certificate is not trusted"),
        ("WRONG_VERSION_NUMBER", "does not speak TLS"),
        ("Connection reset", "resets the connection"),
    ):
        if known in text:
            return words
    return text
