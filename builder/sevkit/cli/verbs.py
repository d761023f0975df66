# SPDX-License-Identifier: Apache-2.0
"""What `--help` shows of each verb besides its own text: a section, a summary, examples."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import click


class Verb(NamedTuple):
    """A row of the list of verbs; `examples` are command lines, without the word sevkit."""

    summary: str
    examples: tuple[str, ...] = ()


SECTIONS: Mapping[str, Mapping[str, Verb]] = MappingProxyType(
    {
        "Build": {
            "build": Verb(
                "Build images, or single stages",
                (
                    "build sev-guest kernel_series=6.1 -j8",
                    "build sev-guest:kernel sev-guest-lean -k",
                    "build sev-guest -n",
                ),
            ),
            "fetch": Verb("Fetch all sources, to build offline", ("fetch sev-guest",)),
            "check": Verb(
                "Check recipes without building", ("check sev-guest", "check --no-kernel")
            ),
            "lock": Verb("Pin every source of a recipe", ("lock sev-guest", "lock --update")),
            "update": Verb("Look up unpinned sources again"),
            "vendor": Verb("Write all that a build needs into a folder", ("vendor FOLDER",)),
            "menuconfig": Verb("Edit the kernel configuration in menus"),
        },
        "Inspect": {
            "list": Verb("List recipes and their newest images"),
            "show": Verb("Show stages and why they are stale", ("show sev-guest --why",)),
            "log": Verb("Print the log of a step", ("log", "log kernel")),
            "why": Verb("Say what brought a file in", ("why /usr/bin/crun --image sev-guest",)),
            "kconfig": Verb("Ask about the kernel configuration", ("kconfig why SWIOTLB",)),
            "measure": Verb(
                "Compute what launches measure as",
                ("measure sev-guest --vcpus 4", "measure sev-guest --mode sev-snp --vmm ec2"),
            ),
            "diff": Verb("Say why two images measure differently", ("diff OLD NEW",)),
            "firmware": Verb("Ask about firmware images", ("firmware inspect OVMF.fd",)),
            "schema": Verb("Print a JSON Schema", ("schema manifest",)),
            "man": Verb("Print the manual page"),
        },
        "Run": {
            "boot": Verb(
                "Boot an image, run a command in it",
                (
                    "boot sev-guest",
                    "boot sev-guest ls -l /",
                    "boot sev-guest --rootfs FOLDER -- sh -c 'exit 7'",
                ),
            ),
            "run": Verb(
                "Run a container in a guest of its own",
                ("run sev-guest docker-archive:FILE", "run -it sev-guest dir:FOLDER sh -l"),
            ),
            "doctor": Verb(
                "Say what this host lacks", ("doctor", "doctor sev-guest --mode sev-snp")
            ),
            "export": Verb(
                "Write files for QEMU, libvirt, Kata, trustee",
                ("export sev-guest libvirt --memory 2G -o guest.xml", "export sev-guest rvps"),
            ),
            "install": Verb(
                "Copy what a runtime reads of an image",
                ("install sev-guest --destdir debian/tmp --prefix /usr/share/sevkit",),
            ),
            "probe": Verb("Search for a guest's memory on this host"),
        },
        "Trust": {
            "verify": Verb(
                "Check an image against its manifest",
                ("verify sev-guest", "verify sev-guest --key release.pub"),
            ),
            "prove": Verb("Show that changed boots are refused", ("prove sev-guest",)),
            "reproduce": Verb("Build an image again and compare", ("reproduce sev-guest",)),
            "sign": Verb("Sign an image with an ssh key", ("sign sev-guest --key KEY",)),
            "verify-report": Verb(
                "Check an SNP attestation report",
                ("verify-report REPORT manifest.json --vcek vcek.pem",),
            ),
        },
        "Store": {
            "gc": Verb("Remove what was not used for long", ("gc --max-size 20GiB -n",)),
            "clean": Verb("Delete images and logs", ("clean -n", "clean --store")),
            "cache-key": Verb("Print what to key a CI cache on", ("cache-key --files",)),
        },
    }
)


class Verbs(click.Group):
    """A group that lists its verbs by section."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a verb, with its summary and its examples.

        Raises `KeyError` for one without a row above.
        """
        rows = {name: row for verbs in SECTIONS.values() for name, row in verbs.items()}
        verb = rows[str(cmd.name)]
        cmd.short_help = verb.summary
        if verb.examples:
            lines = "\n".join(f"  sevkit {example}" for example in verb.examples)
            cmd.epilog = f"\b\nExamples:\n{lines}"
        super().add_command(cmd, name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a table for each section."""
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, verb.summary) for name, verb in verbs.items()])
