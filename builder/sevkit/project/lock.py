# SPDX-License-Identifier: Apache-2.0
"""Lock files: what each source of a recipe resolved to, and the kernel configuration it gives.

``recipes/<name>.lock`` lists every request that was locked, for any values of the variables, with
its files by digest; the configurations are whole ``.config`` files beside it, to be read in a
review. A build reads both and writes neither; `sevkit lock` writes them.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from sevkit.canonical import canonical_json, sha256_of
from sevkit.disk import fsync, write_whole
from sevkit.errors import RecipeError
from sevkit.recipe.model import FileSource
from sevkit.sources.pins import Pin, Request, described, read_pins, self_pinned, without_credentials
from sevkit.stage import Stage

_SCHEMA = 1
_SHORT_DIGITS = 8
_SHOWN_CHARACTERS = 80
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CONFIG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~%:-]*\.config")


class DamagedLockError(RecipeError):
    """A lock file that is none, or not as it was written."""


@dataclass(frozen=True)
class Locked:
    """A request as it was locked: under which name the recipe had it, and what it resolved to."""

    source: str
    request: Mapping[str, Any]
    pins: tuple[Pin, ...]


@dataclass(frozen=True)
class Choice:
    """For what a recipe is locked: a toolchain, as the command line says it, and its variables."""

    toolchain: str
    variables: Mapping[str, str]

    def stands_for(self, other: "Choice") -> bool:
        """Whether the two are one choice: no variable that both know has another value."""
        common = self.variables.keys() & other.variables.keys()
        return self.toolchain == other.toolchain and all(
            self.variables[name] == other.variables[name] for name in common
        )

    def record(self) -> dict[str, Any]:
        """It as plain data."""
        return {"toolchain": self.toolchain, "variables": dict(self.variables)}


@dataclass(frozen=True)
class LockedConfig:
    """A kernel configuration that is locked: the file beside the lock, and for which choices."""

    file: str
    sha256: str
    choices: tuple[Choice, ...]

    def without(self, choice: Choice) -> "LockedConfig":
        """The same for all choices but this one."""
        choices = tuple(other for other in self.choices if not other.stands_for(choice))
        return replace(self, choices=choices)

    def record(self) -> dict[str, Any]:
        """It as plain data."""
        choices = [choice.record() for choice in self.choices]
        choices.sort(key=canonical_json)
        return {"file": self.file, "sha256": self.sha256, "choices": choices}


@dataclass(frozen=True)
class Lock:
    """The lock file at `path`. `configs`: what a configuration rests on, by `config_key` → it.

    `mend` is the command that writes it anew.
    """

    path: Path
    recipe: str
    requests: tuple[Locked, ...] = ()
    configs: Mapping[str, LockedConfig] = field(default_factory=dict)
    mend: str = ""

    def pins(self, request: Request) -> Sequence[Pin] | None:
        """What `request` was locked to; None when it is not in the lock. A file needs no lock.

        Raises `RecipeError` where the lock says something else than a request that pins itself.
        """
        if isinstance(request, FileSource):
            return []
        wanted = _public(request)
        row = next((row for row in self.requests if row.request == wanted), None)
        own = self_pinned(request)
        if row is None:
            return None
        if own is not None and _named(row.pins) != _named(own):
            raise RecipeError(
                f"{self.path} locks {row.source} to something else than the recipe names",
                why="\n".join(
                    f"{who}: {pins[0].reference}, {_in_words(without_credentials(pins[0].origin))}"
                    for who, pins in (("recipe", own), ("lock", row.pins))
                ),
                hint=self.mend,
            )
        return row.pins

    def refusal(self, source: str, request: Request) -> RecipeError:
        """Why a build that must be locked can't go on with `request`."""
        others = [row for row in self.requests if row.source == source]
        asked = _in_words(_public(request))
        if others:
            why = f"locked: {'; '.join(_in_words(row.request) for row in others)}\nasked: {asked}"
        else:
            why = f"asked: {asked}"
        return RecipeError(
            f"{self.path}: {source} is not locked as the recipe asks for it",
            why=why,
            hint=self.mend,
        )

    def config(self, key: str) -> Path | None:
        """The locked configuration of a kernel stage with this `config_key`; None without one.

        Raises `RecipeError` when its file is missing or was changed.
        """
        if key not in self.configs:
            return None
        locked = self.configs[key]
        path = self.path.with_name(locked.file)
        try:
            found = sha256_of(path)
        except OSError as error:
            raise RecipeError(f"{path}: {error.strerror}", hint=self.mend) from error
        if found != locked.sha256:
            raise RecipeError(
                f"{path} is not the configuration that {self.path.name} locks",
                why=f"its SHA-256 is {found}, not {locked.sha256}",
                hint=f"change a fragment instead, then {self.mend}",
            )
        return path

    def holds(self, name: str) -> bool:
        """Whether a file called `name` is locked."""
        return any(pin.name == name for row in self.requests for pin in row.pins)

    def with_pins(self, source: str, request: Request, pins: Sequence[Pin]) -> "Lock":
        """The lock with `request` locked to `pins`, and what it had for the same request gone."""
        if isinstance(request, FileSource):
            return self
        clean = tuple(replace(pin, origin=without_credentials(pin.origin)) for pin in pins)
        row = Locked(source, _public(request), clean)
        kept = [other for other in self.requests if other.request != row.request]
        return replace(self, requests=(*kept, row))

    def with_config(self, key: str, series: str, data: bytes, choice: Choice) -> "Lock":
        """The lock with the configuration `data` of a kernel of `series`, for `write` to write.

        What was locked for the same choice goes. Equal configurations share one file; the plain
        name is that of the first.
        """
        digest = hashlib.sha256(data).hexdigest()
        choices = [choice]
        kept, names = dict[str, LockedConfig](), [f"{self.recipe}-{series}.config"]
        for other, row in sorted(self.configs.items()):
            left = row.without(choice)
            if other == key:
                choices += left.choices
            elif left.choices:
                kept[other] = left
                continue
            if row.file.startswith(f"{self.recipe}-{series}-"):
                names.append(row.file)
        short = hashlib.sha256(canonical_json(choice.record()).encode()).hexdigest()[:_SHORT_DIGITS]
        names += [row.file for row in kept.values() if row.sha256 == digest]
        names.append(f"{self.recipe}-{series}-{short}.config")
        taken = {row.file for row in kept.values() if row.sha256 != digest}
        name = next(name for name in names if name not in taken)
        for other, row in kept.items():
            if row.sha256 == digest:
                kept[other] = replace(row, file=name)
        return replace(self, configs={**kept, key: LockedConfig(name, digest, tuple(choices))})

    def choices(self) -> Sequence[Choice]:
        """All that it locks a configuration for."""
        return [choice for row in self.configs.values() for choice in row.choices]

    def only(self, wanted: Iterable[Request]) -> "Lock":
        """The lock without what none of `wanted` asks for."""
        asked = [_public(request) for request in wanted]
        return replace(self, requests=tuple(row for row in self.requests if row.request in asked))

    def text(self) -> str:
        """The one text form: equal locks are equal bytes."""
        rows = [
            {
                "source": row.source,
                "request": row.request,
                "pins": [
                    asdict(replace(pin, origin=dict(pin.origin)))
                    for pin in sorted(row.pins, key=lambda pin: pin.name)
                ],
            }
            for row in sorted(
                self.requests, key=lambda row: (row.source, canonical_json(row.request))
            )
        ]
        configs = {key: row.record() for key, row in self.configs.items()}
        record = {
            "schema": _SCHEMA,
            "recipe": self.recipe,
            "requests": rows,
            "kernel_configs": configs,
        }
        return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write the lock, and `files` beside it, each at once and to the disk; the lock last."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for name, data in {**files, self.path.name: self.text().encode()}.items():
            write_whole(self.path.with_name(name), data)
        fsync(self.path.parent)

    def remove_configs(self, kept: "Lock") -> None:
        """Remove the configurations that `kept`, written since, lacks; not one that was edited."""
        names = {row.file for row in kept.configs.values()}
        for row in self.configs.values():
            place = self.path.with_name(row.file)
            if row.file not in names and place.is_file() and sha256_of(place) == row.sha256:
                place.unlink()


def read_lock(path: Path, recipe: str, mend: str) -> Lock | None:
    """The lock of `recipe` in `path`, which the command `mend` writes; None where there is none.

    Raises `DamagedLockError` for a file that is damaged, was edited, or is of another recipe.
    """
    try:
        raw = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, mend, str(error)) from error
    try:
        lock = replace(_parsed(json.loads(raw), path), mend=mend)
    except json.JSONDecodeError as error:
        raise _damaged(path, mend, _line_of(raw, error.lineno)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, mend, f"{type(error).__name__}: {error}") from error
    if lock.recipe != recipe:
        raise _damaged(path, mend, f"it is the lock of {lock.recipe}")
    if lock.text() != raw:
        pairs = zip_longest(raw.splitlines(), lock.text().splitlines())
        number = next((number for number, (a, b) in enumerate(pairs, 1) if a != b), 1)
        raise _damaged(path, mend, f"its text is not as sevkit writes it: {_line_of(raw, number)}")
    return lock


def changes_of(old: Lock, new: Lock) -> list[str]:
    """What `new` locks and `old` did not, or otherwise, a line each.

    A file that several requests of a source have is told of when it leaves one of them.
    """
    gone, come = _files(old) - _files(new), _files(new) - _files(old)
    outs, ins = ({(source, name) for source, name, _ in files} for files in (gone, come))
    lines = [f"{source}: {name} is out" for source, name in sorted(outs - ins)]
    lines += [f"{source}: {name} is in" for source, name in sorted(ins - outs)]
    lines += [f"{source}: {name} has other bytes" for source, name in sorted(outs & ins)]
    before, after = ({row.file: row.sha256 for row in lock.configs.values()} for lock in (old, new))
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            lines.append(f"kernel: {name} is new")
        elif name not in after:
            lines.append(f"kernel: {name} is out")
        elif before[name] != after[name]:
            lines.append(f"kernel: {name} is another")
    return lines


def _files(lock: Lock) -> Counter[tuple[str, str, str]]:
    """Source, name and reference of each file that is locked, counted by request."""
    return Counter(
        (row.source, pin.name, pin.reference) for row in lock.requests for pin in row.pins
    )


def config_key(stage: Stage) -> str:
    """What the configuration of a kernel stage rests on.

    A linked-in initramfs is no part of it, nor is how the stage is confined.
    """
    inputs = {role: value for role, value in stage.inputs.items() if role != "initramfs"}
    params = {name: value for name, value in stage.params.items() if name != "sandbox"}
    record = canonical_json({"params": params, "inputs": inputs})
    return hashlib.sha256(record.encode()).hexdigest()


def _parsed(value: Any, path: Path) -> Lock:
    if value["schema"] != _SCHEMA:
        raise ValueError(f"schema {value['schema']}, and this sevkit reads {_SCHEMA}")
    requests = tuple(
        Locked(str(row["source"]), row["request"], tuple(read_pins(row["pins"], row["request"])))
        for row in value["requests"]
    )
    configs = {}
    for key, row in value["kernel_configs"].items():
        choices = tuple(Choice(**choice) for choice in row["choices"])
        config = LockedConfig(**{**row, "choices": choices})
        texts = [
            text
            for choice in choices
            for text in (choice.toolchain, *choice.variables.keys(), *choice.variables.values())
        ]
        if (
            not _CONFIG_NAME.fullmatch(config.file)
            or not _DIGEST.fullmatch(config.sha256)
            or not all(isinstance(text, str) for text in texts)
            or not choices
        ):
            raise ValueError(f"kernel_configs: {config.file}")
        configs[key] = config
    return Lock(path, str(value["recipe"]), requests, configs)


def _damaged(path: Path, mend: str, why: str) -> RecipeError:
    return DamagedLockError(
        f"{path} can't be used",
        why=why,
        hint=f"mend it, or look everything up anew: {mend} --update",
    )


def _line_of(text: str, number: int) -> str:
    line = text.splitlines()[number - 1 : number]
    return f"line {number}: {line[0].strip()[:_SHOWN_CHARACTERS]}" if line else f"line {number}"


def _public(request: Request) -> Mapping[str, Any]:
    """The request without the passwords and tokens that its addresses may hold."""

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(one) for one in value]
        return without_credentials({"": value})[""] if isinstance(value, str) else value

    return {name: clean(value) for name, value in described(request).items()}


def _named(pins: Sequence[Pin]) -> Sequence[tuple[str, Mapping[str, str]]]:
    return [(pin.reference, without_credentials(pin.origin)) for pin in pins]


def _in_words(request: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in request.items() if value is not None)
