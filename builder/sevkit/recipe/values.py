# SPDX-License-Identifier: Apache-2.0
"""The values of a recipe, each with its form: names, paths, sizes, words, digests.

A form that is not kept is told in words, `FORMS`. Knows no table of a recipe.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from sevkit.kconfig.agent_fit import NEEDS
from sevkit.measure.digests import features_problem

K = TypeVar("K")
V = TypeVar("V")

_UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = "[0-9]{1,12} ?(KiB|MiB|GiB|)"
_PATH_BYTES = 4095
"""linux/limits.h: PATH_MAX is 4096, its NUL included; a name in it has at most 255."""
_TEMPLATE_WORDS = ("and", "else", "false", "if", "in", "is", "none", "not", "or", "self", "true")
_ADDRESS = r"[^\s\x00-\x1f\x7f-\x9f]+$"
_URL = f"^https?://{_ADDRESS}"
_GIT_URL = f"^(https?|ssh|git|file)://{_ADDRESS}"
_PLATFORM = r"^([A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*\.dsc$"
_LICENCE = r"^[A-Za-z0-9(][A-Za-z0-9.+() -]*$"
_NOT_ON_A_COMMAND_LINE = ("root", "rootfstype", "rootflags", "init", "rdinit", "initrd")
_SHA256 = r"^[0-9a-f]{64}$"
_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
_VARIABLE_NAME = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"
_VERSION = r"^[A-Za-z0-9][A-Za-z0-9.+~_-]{0,63}$"
_PACKAGE = r"^[a-z0-9][a-z0-9+.-]+$"
_DEB_VERSION = r"^[A-Za-z0-9][A-Za-z0-9.+:~-]*$"
_SUITE = r"^[a-z][a-z0-9-]*$"
_COMMIT = r"^[0-9a-f]{40}$"
_FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_TOOL_CHAIN_TAG = r"^[A-Z][A-Z0-9_]*$"
_MACRO = r"^[A-Z][A-Z0-9_]{0,63}$"
_MACRO_VALUE = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"


class Table(Mapping[K, V]):
    """A mapping that can't change and can be hashed."""

    def __init__(self, items: Mapping[K, V]):
        self._items = dict(items)

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"Table({self._items!r})"


def _sorted(table: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(table.items()))


def _size(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(_SIZE, value, re.ASCII)
        if match is None:
            raise ValueError('is no size: write bytes, or "14 MiB", "512 KiB"')
        return int(value[: match.start(1)]) * _UNITS[match[1]]
    return value


def _some(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def none_if_empty(value: object) -> object:
    """None for an empty text, with which a recipe takes back what it inherits."""
    return None if value == "" else value


def _normal(value: str, parts: list[str]) -> bool:
    return (
        value.isprintable()
        and len(value.encode("utf-8", "surrogatepass")) <= _PATH_BYTES
        and not any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
    )


def _guest_path(value: str) -> str:
    if not value.startswith("/") or not _normal(value, value.split("/")[1:]):
        raise ValueError("is no absolute, plain path in the guest, such as /usr/bin/crun")
    return value


def _member(value: str) -> str:
    plain = value.removeprefix("./")
    if not _normal(plain, plain.split("/")):
        raise ValueError("is no plain path inside an archive, such as usr/share/ovmf/OVMF.fd")
    return plain


def _address(value: str) -> str:
    if not value.isprintable():  # more than a pattern says: U+200B, say, which nobody sees
        raise ValueError("is not an address, for not all of it is printable")
    return value


def _guest_features(value: int) -> int:
    if problem := features_problem(value):
        raise ValueError(f"{problem}: 1, or 33 with DebugSwap")
    return value


def _word(value: str) -> str:
    """A token of the kernel command line, as next_arg() in lib/cmdline.c takes them apart."""
    if not value or not value.isascii() or not value.isprintable():
        raise ValueError("must be printable ASCII, at least one character")
    if value.count('"') % 2 or " " in re.sub(r'"[^"]*"', "", value):
        raise ValueError("is more than one token: give each its own string, or quote the blanks")
    if value.removeprefix('"').split("=", maxsplit=1)[0] in _NOT_ON_A_COMMAND_LINE:
        raise ValueError("is not for this kind of guest: the initramfs is the root, its /init runs")
    return value


def _need(value: str) -> str:
    if value not in NEEDS:
        raise ValueError(f"is none of {', '.join(NEEDS)}")
    return value


def _variable_name(value: str) -> str:
    if value.lower() in _TEMPLATE_WORDS:
        raise ValueError("is a word of the template language")
    return value


Sha256 = Annotated[str, Field(pattern=_SHA256)]
Name = Annotated[str, Field(pattern=_NAME)]
VariableName = Annotated[str, Field(pattern=_VARIABLE_NAME), AfterValidator(_variable_name)]
Version = Annotated[str, Field(pattern=_VERSION)]
Package = Annotated[str, Field(pattern=_PACKAGE)]
DebVersion = Annotated[str, Field(pattern=_DEB_VERSION)]
Suite = Annotated[str, Field(pattern=_SUITE)]
Url = Annotated[str, Field(pattern=_URL), AfterValidator(_address)]
GitUrl = Annotated[str, Field(pattern=_GIT_URL), AfterValidator(_address)]
Commit = Annotated[str, Field(pattern=_COMMIT)]
FileName = Annotated[str, Field(pattern=_FILE_NAME)]
PlatformFile = Annotated[str, Field(pattern=_PLATFORM)]
ToolChainTag = Annotated[str, Field(pattern=_TOOL_CHAIN_TAG)]
Need = Annotated[str, AfterValidator(_need), WithJsonSchema({"enum": list(NEEDS)})]
Licence = Annotated[str, Field(pattern=_LICENCE)]
Macro = Annotated[str, Field(pattern=_MACRO)]
MacroValue = Annotated[str, Field(pattern=_MACRO_VALUE)]
GuestPath = Annotated[
    str, AfterValidator(_guest_path), WithJsonSchema({"type": "string", "pattern": r"^(/[^/]+)+$"})
]
Member = Annotated[
    str,
    AfterValidator(_member),
    WithJsonSchema({"type": "string", "pattern": r"^(\./)?[^/]+(/[^/]+)*$"}),
]
Word = Annotated[
    str, AfterValidator(_word), WithJsonSchema({"type": "string", "pattern": r"^[ -~]+$"})
]
GuestFeatures = Annotated[
    int,
    AfterValidator(_guest_features),
    Field(ge=1, le=(1 << 63) - 1),
]
Size = Annotated[
    int,
    BeforeValidator(_size),
    Field(gt=0, le=1 << 40),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": 1 << 40},
                {"type": "string", "pattern": f"^{_SIZE}$"},
            ]
        }
    ),
]
Urls = Annotated[
    tuple[Url, ...],
    BeforeValidator(_some),
    Field(min_length=1),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": _URL},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "string", "pattern": _URL},
                },
            ]
        }
    ),
]
Frozen = Annotated[Mapping[K, V], AfterValidator(Table), PlainSerializer(_sorted)]

FORMS: Mapping[str, str] = {
    _SHA256: "64 lower-case hexadecimal digits",
    _COMMIT: "40 lower-case hexadecimal digits, the whole commit id",
    _NAME: "a name: lower-case letters, digits, '.', '_', '-', at most 64",
    _VARIABLE_NAME: "a variable's name: letters, digits, '_', at most 64",
    _VERSION: "a version: letters, digits, '.+~_-', at most 64",
    _PACKAGE: "the name of a Debian package",
    _DEB_VERSION: "the version of a Debian package",
    _SUITE: "a suite, such as bookworm or bookworm-backports",
    _URL: "an address that starts with https:// or http://, all of it printable",
    _GIT_URL: "an address that starts with https://, ssh:// or git://, all of it printable",
    _FILE_NAME: "the name of a file",
    _LICENCE: "an SPDX licence expression, such as Apache-2.0 or MIT OR Apache-2.0",
    _PLATFORM: "the path of a .dsc file in edk2's tree, such as OvmfPkg/AmdSev/AmdSevX64.dsc",
    _TOOL_CHAIN_TAG: "a tool chain tag, such as GCC5",
    _MACRO: "the name of a macro: capital letters, digits, '_', at most 64",
    _MACRO_VALUE: "the value of a macro: one word, such as TRUE or 4096",
}
"""Each pattern that a value may fail, in words."""
