# SPDX-License-Identifier: Apache-2.0
"""The licences that a Debian copyright file states, as SPDX expressions where it has names.

Reads the machine-readable format 1.0 (DEP-5); of any other file it tells only which of the common
licences it refers to. It states what the package states and never judges whether that is so.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

SEE_COPYRIGHT = "see copyright"

_FORMAT = re.compile(r"^Format(-Specification)?:\s*\S*(copyright-format|DEP-?5|dep5)", re.I)
_COMMON = re.compile(r"common-licenses/([A-Za-z0-9.+-]*[A-Za-z0-9+])")
_WITH_EXCEPTION = re.compile(r"^(?P<licence>\S+) with (?P<exception>.+?) exception$", re.I)

_SPDX: Mapping[str, str] = {
    "agpl-3": "AGPL-3.0-only",
    "agpl-3+": "AGPL-3.0-or-later",
    "apache-2.0": "Apache-2.0",
    "artistic": "Artistic-1.0-Perl",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsl-1.0": "BSL-1.0",
    "cc0-1.0": "CC0-1.0",
    "expat": "MIT",
    "fsfap": "FSFAP",
    "fsful": "FSFUL",
    "fsfullr": "FSFULLR",
    "gpl-1": "GPL-1.0-only",
    "gpl-1+": "GPL-1.0-or-later",
    "gpl-2": "GPL-2.0-only",
    "gpl-2.0": "GPL-2.0-only",
    "gpl-2+": "GPL-2.0-or-later",
    "gpl-2.0+": "GPL-2.0-or-later",
    "gpl-3": "GPL-3.0-only",
    "gpl-3+": "GPL-3.0-or-later",
    "gpl-3.0+": "GPL-3.0-or-later",
    "isc": "ISC",
    "lgpl-2": "LGPL-2.0-only",
    "lgpl-2+": "LGPL-2.0-or-later",
    "lgpl-2.0+": "LGPL-2.0-or-later",
    "lgpl-2.1": "LGPL-2.1-only",
    "lgpl-2.1+": "LGPL-2.1-or-later",
    "lgpl-3": "LGPL-3.0-only",
    "lgpl-3+": "LGPL-3.0-or-later",
    "mit": "MIT",
    "mpl-2.0": "MPL-2.0",
    "openssl": "OpenSSL",
    "python-2.0": "Python-2.0",
    "zlib": "Zlib",
}
_SPDX_EXCEPTIONS: Mapping[str, str] = {
    "autoconf": "Autoconf-exception-generic",
    "libtool": "Libtool-exception",
    "linux-syscall-note": "Linux-syscall-note",
}

# DEP-5: "and" binds tighter than "or", and a comma looser than either
_JOINTS = (
    (r",\s+and\s+", " AND "),
    (r",\s+or\s+", " OR "),
    (r"\s+or\s+", " OR "),
    (r"\s+and\s+", " AND "),
)


@dataclass(frozen=True)
class Licences:
    """`licence` is that of the package as a whole; `others` are those of single files in it."""

    licence: str
    others: tuple[str, ...] = ()


def read_copyright(text: str) -> Licences:
    """The licences that the copyright file `text` states; never fails."""
    if not _FORMAT.match(text.lstrip("\ufeff")):
        names = sorted(set(_COMMON.findall(text)))
        return Licences(f"{SEE_COPYRIGHT} ({', '.join(names)})" if names else SEE_COPYRIGHT)
    whole = ""
    found: list[str] = []
    for files, licence in _file_paragraphs(text):
        expression = spdx(licence)
        if expression and not whole and "*" in files:
            whole = expression
        elif expression:
            found.append(expression)
    others = sorted(set(found) - {whole})
    if not whole:
        return Licences(" AND ".join(map(_grouped, others)) or SEE_COPYRIGHT)
    return Licences(whole, tuple(others))


def _file_paragraphs(text: str) -> Iterator[tuple[Sequence[str], str]]:
    """The patterns and the licence line of each Files paragraph."""
    for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1] in (" ", "\t"):
                if name == "files":
                    fields[name] += " " + line.strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.lower()
                fields[name] = value.strip()
        if "files" in fields and "license" in fields:
            yield fields["files"].split(), fields["license"]


def spdx(licence: str) -> str:
    """A DEP-5 licence synopsis (``GPL-2+ or Expat``) as an SPDX expression.

    A name that SPDX does not list becomes a ``LicenseRef-``; an empty synopsis stays empty.
    """
    words = licence.strip(" ,")
    for word, joint in _JOINTS:
        parts = re.split(word, words, flags=re.I)
        if len(parts) > 1:
            ors_grouped = joint == " AND "
            return joint.join(_grouped(part) if ors_grouped else part for part in map(spdx, parts))
    match = _WITH_EXCEPTION.match(words)
    if match:
        exception = match["exception"].lower()
        if exception in _SPDX_EXCEPTIONS:
            return f"{_one(match['licence'])} WITH {_SPDX_EXCEPTIONS[exception]}"
        return _reference(words)
    return _one(words)


def _one(name: str) -> str:
    return _SPDX.get(name.lower(), _reference(name)) if name else ""


def _reference(name: str) -> str:
    return "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", name.replace("+", "-or-later")).strip(
        "-"
    )


def _grouped(expression: str) -> str:
    return f"({expression})" if " OR " in expression else expression
