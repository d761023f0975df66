# SPDX-License-Identifier: Apache-2.0
"""Verbs that give disk space back: gc, clean."""

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import click

from sevkit.cli.common import Place, json_option, main, say_json, shown

if TYPE_CHECKING:
    from sevkit.store.gc import Collected

_DEFAULT_DAYS = 30
_SHOWN = 10
_SECONDS = {"m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _in(units: Mapping[str, int], example: str) -> Callable[..., int | None]:
    """What turns the text of an option, a number and one of `units`, into the smallest of them."""

    def convert(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
        if text is None:
            return None
        match = re.fullmatch(rf"([0-9]{{1,12}}) ?({'|'.join(units)})", text)
        if match is None:
            raise click.BadParameter(f"'{text}': write {example}, in one of {', '.join(units)}")
        return int(match[1]) * units[match[2]]

    return convert


@main.command()
@click.option(
    "--older-than",
    metavar="AGE",
    callback=_in(_SECONDS, "30d"),
    help=f"Remove what was not used for so long (without --max-size: {_DEFAULT_DAYS}d).",
)
@click.option(
    "--max-size",
    metavar="SIZE",
    callback=_in(_BYTES, "20GiB"),
    help="Remove what was used longest ago until the store takes no more than this.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be removed.")
@json_option
def gc(older_than: int | None, max_size: int | None, dry_run: bool, as_json: bool) -> None:
    """Remove from the store what was not used for long; never what a running build uses."""
    from sevkit.store.gc import collect
    from sevkit.store.store import Store, default_root

    if older_than is None and max_size is None:
        older_than = _DEFAULT_DAYS * _SECONDS["d"]
    store = Store(default_root(os.environ))
    done = collect(store, older_than_seconds=older_than, max_bytes=max_size, dry_run=dry_run)
    if as_json:
        record = {
            "store": str(store.root),
            "removed": not dry_run,
            "counts": done.counts,
            "freed_bytes": done.freed_bytes,
            "left_bytes": done.left_bytes,
            "in_use": done.in_use,
            "not_ours": [str(path) for path in done.not_ours],
        }
        say_json(record)
        return
    _say(done, dry_run=dry_run)
    click.echo(f"store: {_size(done.left_bytes)} in {shown(store.root)}")


def _say(done: "Collected", *, dry_run: bool) -> None:
    verb = "would remove" if dry_run else "removed"
    parts = [f"{number} {kind}" for kind, number in done.counts.items()]
    if parts:
        click.echo(f"{verb}: {', '.join(parts)}; {_size(done.freed_bytes)}")
    else:
        click.echo(f"{verb} nothing")
    if done.in_use:
        click.echo(f"kept: {done.in_use} that running builds use")
    for path in done.not_ours:
        click.echo(f"left: {path}, which only the user who made it or root can remove")


def _size(count: int) -> str:
    unit = max((u for u in _BYTES if count >= _BYTES[u]), key=_BYTES.__getitem__, default="B")
    return f"{count} B" if unit == "B" else f"{count / _BYTES[unit]:.1f} {unit}"


@main.command()
@click.option("--store", "whole_store", is_flag=True, help="Empty the store too.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be deleted.")
@click.pass_obj
def clean(place: Place, whole_store: bool, dry_run: bool) -> None:
    """Delete images and logs of this project; with --store everything that was fetched or built.

    What else lies in their folders stays.
    """
    from sevkit.clearing import Clearing
    from sevkit.image.removal import images_to_remove
    from sevkit.store.removal import store_to_remove
    from sevkit.store.store import default_root

    root = default_root(os.environ)
    images = images_to_remove(place.output) if place.output.is_dir() else Clearing()
    with contextlib.ExitStack() as held:
        store = Clearing()
        if whole_store and root.is_dir():
            store = held.enter_context(store_to_remove(root))
        for folder, clearing in ((place.output, images), (root, store)):
            if dry_run:
                for path in clearing.ours:
                    click.echo(f"would delete {shown(path)}")
            elif clearing.ours:
                clearing.carry_out()
                click.echo(
                    f"deleted {'the store' if folder == root else 'images'} in {shown(folder)}"
                )
            for path in clearing.left[:_SHOWN]:
                click.echo(f"left {shown(path)}: no build has put it there")
            if len(clearing.left) > _SHOWN:
                click.echo(f"left {len(clearing.left) - _SHOWN} more")
    if not images.ours and not store.ours:
        click.echo("nothing to delete")
