# SPDX-License-Identifier: Apache-2.0
"""Each value of a recipe: what is taken, and what is refused with which words."""

from pathlib import Path

import pytest
from recipe_samples import Project

from sevkit.recipe.model import COMMAND_LINE_BYTES


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("agent/Makefile", "")
    made.write("recipes/motd", "")
    return made


SHA = "0" * 64
COMMIT = "0" * 40

GOOD = [
    'version = "1.0~rc1+2_x"',
    'kernel.cmdline = ["a=b", "dyndbg=\\"file a.c +p\\"", "--", "nokaslr"]',
    'kernel.cmdline = ["rooted=1"]',
    f'kernel.cmdline = ["{"x" * COMMAND_LINE_BYTES}"]',
    "initramfs.max_size = 1",
    'initramfs.max_size = "512KiB"',
    'initramfs.max_size = "1024"',
    'initramfs = { compression = "xz", level = 0 }',
    'initramfs = { compression = "lz4", level = 12 }',
    'initramfs.binaries = ["/usr/bin/crün"]',
    'initramfs.suite = "bookworm-backports"',
    "launch.vcpus = [1, 512]",
    'launch.cpus = ["EPYC-Turin", "EPYC-Rome-v2"]',
    'agent = { path = "agent", binary = "a", debs = [] }',
    'sources.x = { deb-src = "edk2", suite = "trixie", version = "2025.02-8+deb13u1" }',
    'sources.x = { deb = "g++", version = "4:12.2.0-3" }',
    f'sources.x = {{ git = "ssh://git@host/x", commit = "{COMMIT}" }}',
    f'sources.x = {{ url = "http://[::1]:80/x?y=z", sha256 = "{SHA}", member = "./a/b" }}',
    f'sources.x = {{ git = "https://host/größe.git", commit = "{COMMIT}" }}',
    'sources.never-used = { deb = "hello" }',
]

BAD = [
    ("version = 1", 'version: must be text in quotes, not 1'),
    ("version = 2026-11-23", "version: 2026-11-23 is neither text in quotes nor a whole number"),
    ("version = 1.5", "version: 1.5 is neither text in quotes nor a whole number"),
    ('version = "../x"', 'version: "../x" is not a version: '),
    ('summary = "a\\nb"', "summary: must be one line"),
    ("debug = 1", "debug: must be true or false, not 1"),
    ('debug = "true"', 'debug: must be true or false, not "true"'),
    ("kernel = 3", "kernel: must be a table, not 3"),
    ("sources = []", "sources: must be a table, not a list"),
    ("sources.x = 3", "sources.x: must be a table, not 3"),
    ("sources.x = {}", "sources.x: has none of deb, deb-src, url, git, file"),
    ('sources.x = { dep = "a" }', "sources.x: has none of deb, deb-src, url, git, file: did you"),
    ('sources.x = { deb = "aa", url = "b" }', "sources.x.url: a source is either deb or url"),
    ('sources.x = { deb = "aa", suit = "b" }', "sources.x.suit: there is no such key: did you m"),
    ('sources.x = { deb = "aa", suite = "A B" }', 'sources.x.suite: "A B" is not a suite'),
    ('sources.x = { deb = "aa", version = "a b" }', 'sources.x.version: "a b" is not the version'),
    ('sources.x = { deb = "aa", member = "../b" }', 'sources.x.member: "../b" is no plain path'),
    ('sources.x = { deb = "aa", member = "/b" }', 'sources.x.member: "/b" is no plain path'),
    ('sources.x = { url = "https://a/b" }', "sources.x.sha256: is missing"),
    (f'sources.x = {{ url = [], sha256 = "{SHA}" }}', "sources.x.url: must not be empty"),
    (f'sources.x = {{ url = "ftp://a", sha256 = "{SHA}" }}', 'sources.x.url[0]: "ftp://a" is not'),
    (f'sources.x = {{ url = "https://a", sha256 = "{SHA[1:]}" }}', "is not 64 lower-case hexadeci"),
    ('sources.x = { git = "https://a" }', "sources.x.commit: is missing"),
    ('sources.x = { git = "https://a", commit = "main" }', 'sources.x.commit: "main" is not 40'),
    (f'sources.x = {{ url = "ftp://a:b@c", sha256 = "{SHA}" }}', 'sources.x.url[0]: "ftp://c" is'),
    (f'sources.x = {{ url = "https://a/\\u0000", sha256 = "{SHA}" }}', "is not an address"),
    (f'sources.x = {{ url = "https://a/\\u001b[2J", sha256 = "{SHA}" }}', "is not an address that"),
    (f'sources.x = {{ url = "https://a/\\u200b", sha256 = "{SHA}" }}', "not all of it is print"),
    (
        f'sources.x = {{ git = "https://a/\\u200b", commit = "{COMMIT}" }}',
        'sources.x.git: "https://a/\\u200b" is not an address, for not all of it is printable',
    ),
    (f'sources.x = {{ url = "https://a/ b", sha256 = "{SHA}" }}', "is not an address that starts"),
    (f'sources.x = {{ git = "https://a/\\u0000", commit = "{COMMIT}" }}', "is not an address that"),
    (f'sources.x = {{ git = "ssh://a/\\u007f", commit = "{COMMIT}" }}', "is not an address"),
    ("kernel.configs = []", "kernel.configs: must not be empty"),
    ('kernel.configs = "one"', 'kernel.configs: must be a list, not "one"'),
    ('kernel.configs = ["one", "one"]', "kernel.configs[1]: one is there twice"),
    ('kernel.configs = ["../recipes/x"]', "there is no kernel config fragment '../recipes/x'"),
    ('kernel.patches = "../patches/linux-6.12"', "there is no patch series '../patches/linux-6.12"),
    ('kernel.cmdline = ["a b"]', 'kernel.cmdline[0]: "a b" is more than one token'),
    ('kernel.cmdline = ["a=\\"b"]', "kernel.cmdline[0]: "),
    ('kernel.cmdline = [""]', "kernel.cmdline[0]: "),
    ('kernel.cmdline = ["é"]', 'kernel.cmdline[0]: "é" must be printable ASCII'),
    ('kernel.cmdline = ["a\\nb"]', "kernel.cmdline[0]: "),
    ('kernel.cmdline = ["a\\u0000"]', "kernel.cmdline[0]: "),
    ('kernel.cmdline = ["root=/dev/vda"]', "the initramfs is the root"),
    ('kernel.cmdline = ["\\"root=/dev/vda\\""]', "the initramfs is the root"),
    (f'kernel.cmdline = ["{"x" * COMMAND_LINE_BYTES}", "y"]', "is 2049 bytes, the kernel takes 20"),
    ("agent = {}", "agent: needs either path (to compile) or source (to take)"),
    ('agent = { path = "agent" }', "agent.path: needs binary too"),
    ('agent = { path = "agent", binary = "a/b" }', 'agent.binary: "a/b" is not the name of a file'),
    ('agent = { path = "agent", binary = "a", source = "ovmf" }', "agent.source: does not go with"),
    ('agent = { path = "agent", binary = "a", member = "b" }', "agent.member: goes with source"),
    ('agent = { source = "ovmf", binary = "a" }', "agent.binary: goes with path, not with source"),
    ('agent = { source = "ovmf", debs = ["aa"] }', "agent.debs: goes with path, not with source"),
    ('agent = { source = "ovfm" }', "agent.source: no source is called 'ovfm': did you mean 'ovmf"),
    ('initramfs.max_size = "14 MB"', 'initramfs.max_size: "14 MB" is no size'),
    ("initramfs.max_size = 0", "initramfs.max_size: 0 must be greater than 0"),
    ("initramfs.max_size = 14.5", "initramfs.max_size: 14.5 is neither"),
    ("initramfs.max_size = true", "initramfs.max_size: must be a whole number, not true"),
    ('initramfs.max_size = "999999999999 GiB"', "initramfs.max_size: "),
    ('initramfs.compression = "zst"', 'initramfs.compression: "zst" is not possible: did you mean'),
    ("initramfs.level = 20", "initramfs.level: 20 is no level of zstd: 1 to 19"),
    ("initramfs.level = true", "initramfs.level: must be a whole number, not true"),
    ('initramfs = { compression = "none", level = 1 }', "1 is no level of none: it has none"),
    ('initramfs.placement = "built-in"', "initramfs.placement: \"built-in\" is not possible: did"),
    ('initramfs.binaries = ["usr/bin/x"]', 'initramfs.binaries[0]: "usr/bin/x" is no absolute'),
    ('initramfs.binaries = ["/usr//x"]', "initramfs.binaries[0]: "),
    ('initramfs.binaries = ["/usr/../x"]', "initramfs.binaries[0]: "),
    ('initramfs.binaries = ["/usr/x/"]', "initramfs.binaries[0]: "),
    ('initramfs.binaries = ["/a\\nb"]', "initramfs.binaries[0]: "),
    (f'initramfs.binaries = ["/{"x" * 256}"]', "initramfs.binaries[0]: "),
    ('initramfs.files = { "/init" = "motd" }', 'initramfs.files."/init": is the agent\'s place'),
    ('initramfs.files = { "etc/x" = "motd" }', 'initramfs.files."etc/x": "etc/x" is no absolute'),
    ("launch.modes = []", "launch.modes: must not be empty"),
    ("launch.vcpus = [0]", "launch.vcpus[0]: 0 must be greater than or equal to 1"),
    ("launch.vcpus = [2, 1, 2]", "launch.vcpus[2]: 2 is there twice"),
    (f"launch.vcpus = {list(range(1, 66))}", "launch.vcpus: has more than 64 elements"),
    ('launch.cpus = ["EPYC-Milano"]', '"EPYC-Milano" is not possible: did you mean'),
    ('vars = { "a-b" = "x" }', 'vars.a-b: "a-b" is not a variable\'s name'),
    ('vars = { true = "x" }', 'vars.true: "true" is a word of the template language'),
    ("[[kernel]]", "kernel: must be a table, not a list"),
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_a_good_value_is_taken(text: str, project: Project) -> None:
    assert project.child(text + "\n").name == "child"


@pytest.mark.parametrize(("text", "words"), BAD, ids=[text[:60] for text, _ in BAD])
def test_a_bad_value_is_refused_at_its_line_with_one_problem(
    text: str, words: str, project: Project
) -> None:
    said = project.refusal(text + "\n")
    assert said.startswith("child.toml:4: "), said
    assert words in said
    assert "\n" not in said.partition("\n  looked in")[0]


def test_sizes_are_bytes(project: Project) -> None:
    for written, size in [("1", 1), ('"3"', 3), ('"2 KiB"', 2 << 10), ('"14MiB"', 14 << 20)]:
        assert project.child(f"initramfs.max_size = {written}\n").initramfs.max_size == size


def test_a_long_value_is_cut_in_the_message(project: Project) -> None:
    assert len(project.refusal(f'version = "{"x" * 9999}"\n')) < 250
