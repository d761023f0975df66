# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from pathlib import Path

import pytest

from sevkit import kconfig
from sevkit.errors import BuildError, RecipeError
from sevkit.kconfig import Fragment, Merged, Model
from sevkit.sandbox import Processes, SandboxRunner

KCONFIG = """\
mainmenu "Test"

config MODULES
	bool "Loadable modules"
	modules

config PCI
	bool "PCI"

config EXPERT
	bool "Expert"

menu "Drivers"

config VIRTIO
	bool "virtio"
	depends on PCI && (NET || BLOCK)
	select VIRTIO_RING

config VIRTIO_RING
	bool

config NET
	bool "Network"

config BLOCK
	bool "Block"

config TUNING
	bool "Tuning" if EXPERT
	default y

config HELPER
	bool "Helper"

config HEAVY
	bool "Heavy"
	select HELPER if NET

config SLOTS
	int "Slots"
	range 1 64
	default 8

config ADDRESS
	hex "Address"
	default 0x10

config TITLE
	string "Title"
	default "plain"

choice
	prompt "Compression"

config GZIP
	bool "gzip"

config ZSTD
	bool "zstd"

endchoice

endmenu
"""
MAKEFILE = "VERSION = 6\nPATCHLEVEL = 12\nSUBLEVEL = 7\nEXTRAVERSION =\n"

ParseText = Callable[..., Fragment]


@pytest.fixture
def fragment(tmp_path: Path) -> ParseText:
    def parse(text: str, name: str = "a.config") -> Fragment:
        path = tmp_path / name
        path.write_text(text)
        return kconfig.parse_fragment(path, name)

    return parse


def asked(name: str = "a.config", /, **values: str) -> Fragment:
    return Fragment.of_reason(name, values)


# --- fragments -----------------------------------------------------------------------------


def test_a_fragment_says_what_it_requires_forbids_and_wants_and_why(fragment: ParseText) -> None:
    found = fragment(
        "# SPDX-License-Identifier: Apache-2.0\n#\n# About the file.\n\n"
        "# The bus,\n# and more.\nCONFIG_PCI=y\nCONFIG_PCI_MSI=y\n\n"
        "# Shared pages can be read.\n# CONFIG_KSM is not set\n\n"
        "# wanted: since 6.7. Reports.\nCONFIG_TSM_REPORTS=y\n\n"
        '# override: for tests\nCONFIG_TITLE="a \\"b\\""\n'
    )
    assert [(d.symbol, d.value, d.strength, d.overrides, d.reason) for d in found.demands] == [
        ("PCI", "y", "required", False, "The bus, and more."),
        ("PCI_MSI", "y", "required", False, "The bus, and more."),
        ("KSM", "n", "forbidden", False, "Shared pages can be read."),
        ("TSM_REPORTS", "y", "wanted", False, "since 6.7. Reports."),
        ("TITLE", '"a \\"b\\""', "required", True, "for tests"),
    ]
    assert found.demands[2].where == "a.config:11"


def test_all_problems_of_a_fragment_are_reported_at_once_with_their_lines(
    fragment: ParseText,
) -> None:
    with pytest.raises(RecipeError) as caught:
        fragment(
            "CONFIG_BARE=y\n\n# why\nCONFIG_OFF=n\n# why\nCONFIG_X=maybe\nnonsense\n"
            "# why\n# CONFIG_Y is not  set\n# why\nCONFIG_A=y\nCONFIG_A=y\n"
        )
    text = str(caught.value)
    assert "a.config has 6 problems" in text
    assert "a.config:1: CONFIG_BARE has no reason" in text
    assert "a.config:4: write '# CONFIG_OFF is not set' instead of =n" in text
    assert "a.config:6: CONFIG_X: 'maybe' is no y, m, number" in text
    assert "a.config:7: neither CONFIG_NAME=value nor a comment" in text
    assert "a.config:9: a comment that looks like a symbol" in text
    assert "a.config:12: CONFIG_A is in line 11 already" in text


def test_a_comment_over_an_empty_line_is_no_reason(fragment: ParseText) -> None:
    assert fragment("# why\nCONFIG_A=y\n").demands
    with pytest.raises(RecipeError, match="has no reason"):
        fragment("# about something else\n\nCONFIG_A=y\n")


def test_a_fragment_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone\.config: No such file"):
        kconfig.parse_fragment(tmp_path / "gone.config")
    (tmp_path / "bad.config").write_bytes(b"\xff")
    with pytest.raises(RecipeError, match="not UTF-8"):
        kconfig.parse_fragment(tmp_path / "bad.config")


def test_a_contradiction_names_both_fragments_unless_it_is_meant(fragment: ParseText) -> None:
    base = fragment("# the bus\nCONFIG_PCI=y\n", "base.config")
    silent = fragment("# no bus\n# CONFIG_PCI is not set\n", "late.config")
    with pytest.raises(RecipeError) as caught:
        kconfig.merge([base, silent])
    assert "late.config:2" in caught.value.what
    assert "base.config:2: 'CONFIG_PCI=y' (the bus)" in caught.value.what
    assert "override:" in caught.value.hint
    meant = fragment("# override: no bus\n# CONFIG_PCI is not set\n", "late.config")
    merged = kconfig.merge([base, meant])
    assert merged.text == "# CONFIG_PCI is not set\n"
    assert merged.overridden["PCI"] == base.demands


def test_equal_demands_of_two_fragments_are_no_contradiction(fragment: ParseText) -> None:
    one = fragment("# why\nCONFIG_ADDRESS=0x1F\n# why\nCONFIG_PCI=y\n", "one.config")
    two = fragment("# why\nCONFIG_ADDRESS=0x1f\n# wanted: why\nCONFIG_PCI=y\n", "two.config")
    merged = kconfig.merge([one, two])
    assert merged.demands["PCI"].strength == "required"
    assert merged.overridden == {}


# --- .config -------------------------------------------------------------------------------


def test_values_are_compared_and_not_lines() -> None:
    merged = kconfig.merge([asked(SLOTS="8", ADDRESS="0x1f", TITLE='"a b"', PCI="y", NET="n")])
    values = kconfig.values_of(
        '# CONFIG_NET is not set\nCONFIG_TITLE="a b"\nCONFIG_PCI=y\nCONFIG_SLOTS=8\n'
        "CONFIG_ADDRESS=0x1F\n"
    )
    defined = set(merged.demands)
    assert kconfig.check(merged, values, defined) == []
    values |= {"SLOTS": "9", "TITLE": '"a  b"', "NET": "m"}
    del values["PCI"]
    lost = kconfig.check(merged, values, defined)
    assert [(item.demand.symbol, item.found) for item in lost] == [
        ("SLOTS", "9"),
        ("TITLE", '"a  b"'),
        ("PCI", "n"),
        ("NET", "m"),
    ]


def test_a_forbidden_symbol_that_does_not_exist_is_not_taken_for_absent(
    fragment: ParseText,
) -> None:
    merged = kconfig.merge([fragment("# why\n# CONFIG_KMS is not set\n")])
    assert kconfig.check(merged, {}, {"KMS"}) == []
    [lost] = kconfig.check(merged, {}, {"KSM"})
    assert not lost.exists
    wanted = kconfig.merge([fragment("# wanted: why\n# CONFIG_KMS is not set\n")])
    assert kconfig.check(wanted, {}, {"KSM"}) == []


@pytest.mark.parametrize("text", ["CONFIG_A=y\nCONFIG_A=n\n", "CONFIG_A=maybe\n", "what\n"])
def test_a_config_that_is_none_is_refused(text: str) -> None:
    assert kconfig.values_of("# a comment\n\nCONFIG_A=m\n") == {"A": "m"}
    with pytest.raises(BuildError, match=r"\.config:\d"):
        kconfig.values_of(text)


def test_symbols_of_other_architectures_do_not_count_as_defined(tmp_path: Path) -> None:
    for folder in ("arch/x86", "arch/arm64", "drivers/net"):
        (tmp_path / folder).mkdir(parents=True)
        name = folder.replace("/", "_").upper()
        (tmp_path / folder / "Kconfig").write_text(f'config {name}\n\tbool "x"\n')
    assert kconfig.defined_symbols(tmp_path) == {"ARCH_X86", "DRIVERS_NET"}


# --- why -----------------------------------------------------------------------------------


@pytest.fixture
def ask(tmp_path: Path) -> Callable[[str], Model]:
    tree, work = tmp_path / "tree", tmp_path / "work"
    for folder in (tree, work, tmp_path / "out"):
        folder.mkdir()
    (tree / "Kconfig").write_text(KCONFIG)
    (tree / "Makefile").write_text(MAKEFILE)
    run = SandboxRunner(
        title="kconfig",
        work=work,
        inputs={},
        log=tmp_path / "log",
        jobs=1,
        confined=True,
        processes=Processes(),
        on_progress=lambda done, total, note: None,
    )

    def load(config: str) -> Model:
        (work / ".config").write_text(config)
        return Model(tree, work / ".config", work, run)

    return load


def explain(model: Model, merged: Merged) -> list[str]:
    values = kconfig.read_config(model.config)
    lost = kconfig.check(merged, values, kconfig.defined_symbols(model.tree))
    return kconfig.lost_symbols(lost, merged, model)


def test_a_symbol_that_does_not_exist_is_told_with_its_nearest(
    ask: Callable[[str], Model],
) -> None:
    merged = kconfig.merge([asked(VIRTOI="y")])
    [text] = explain(ask(""), merged)
    assert "linux 6.12.7 has no such symbol" in text
    assert "did you mean CONFIG_VIRTIO" in text


def test_an_unmet_dependency_is_named_with_its_values_and_who_set_them(
    ask: Callable[[str], Model],
) -> None:
    merged = kconfig.merge([asked("base.config", PCI="y", NET="n"), asked(VIRTIO="y")])
    [text] = explain(ask("CONFIG_PCI=y\n# CONFIG_NET is not set\n"), merged)
    assert "a.config: 'CONFIG_VIRTIO=y' is lost, it is n" in text
    assert "needs NET || BLOCK: BLOCK is n; NET is n (base.config forbids it)" in text
    assert "needs PCI" not in text
    merged = kconfig.merge([asked(PCI="y", NET="y", VIRTIO="y")])
    assert explain(ask("CONFIG_PCI=y\nCONFIG_NET=y\nCONFIG_VIRTIO=y\n"), merged) == []


def test_a_forbidden_symbol_names_what_selects_it(ask: Callable[[str], Model]) -> None:
    merged = kconfig.merge([asked("heavy.config", HEAVY="y", NET="y"), asked(HELPER="n")])
    config = "CONFIG_NET=y\nCONFIG_HEAVY=y\nCONFIG_HELPER=y\n"
    [text] = explain(ask(config), merged)
    assert "'# CONFIG_HELPER is not set' is lost, it is y" in text
    assert "selected by HEAVY (heavy.config asks for y), as NET" in text


@pytest.mark.parametrize(
    ("config", "demand", "reason"),
    [
        ("CONFIG_GZIP=y\n", {"ZSTD": "y"}, "only one of the choice 'Compression'"),
        ("CONFIG_ZSTD=y\n", {"ZSTD": "n"}, "ask for another of its members"),
        ("CONFIG_SLOTS=64\n", {"SLOTS": "99"}, "it must be from 1 to 64"),
        ("", {"PCI": "12"}, "it is of type bool"),
        ("", {"PCI": "m"}, "it is of type bool"),
        ("", {"VIRTIO_RING": "y"}, "only what selects it turns it on: VIRTIO"),
        ("CONFIG_TUNING=y\n", {"TUNING": "n"}, "its default is y"),
    ],
)
def test_other_reasons_are_told_too(
    ask: Callable[[str], Model], config: str, demand: dict[str, str], reason: str
) -> None:
    [text] = explain(ask(config), kconfig.merge([asked(**demand)]))
    assert reason in text


def test_why_tells_everything_about_a_symbol(ask: Callable[[str], Model]) -> None:
    merged = kconfig.merge([asked("base.config", PCI="y")])
    text = kconfig.why("CONFIG_VIRTIO", merged, ask("CONFIG_PCI=y\n"))
    assert "CONFIG_VIRTIO is n (bool)" in text
    assert "Kconfig:15: Drivers → virtio" in text
    assert "NET || BLOCK: not met (BLOCK=n, NET=n)" in text
    assert "to enable    needs NET || BLOCK" in text
    assert "fragments    none names it" in text
    text = kconfig.why("PCI", merged, ask("CONFIG_PCI=y\n"))
    assert "required     base.config: CONFIG_PCI=y" in text
    text = kconfig.why("VIRTIO_RING", merged, ask("CONFIG_PCI=y\nCONFIG_NET=y\nCONFIG_VIRTIO=y\n"))
    assert "CONFIG_VIRTIO_RING is y" in text
    assert "selected by  VIRTIO" in text
    with pytest.raises(RecipeError) as caught:
        kconfig.why("VIRTOI", merged, ask(""))
    assert "did you mean CONFIG_VIRTIO" in caught.value.what


def test_only_what_was_chosen_becomes_a_fragment(
    ask: Callable[[str], Model], fragment: ParseText
) -> None:
    merged = kconfig.merge([asked(PCI="y", BLOCK="y")])
    config = (
        "CONFIG_PCI=y\nCONFIG_NET=y\n# CONFIG_BLOCK is not set\nCONFIG_VIRTIO=y\n"
        "CONFIG_VIRTIO_RING=y\nCONFIG_HEAVY=y\nCONFIG_HELPER=y\nCONFIG_TUNING=y\n"
        'CONFIG_SLOTS=8\nCONFIG_ADDRESS=0x20\nCONFIG_TITLE="plain"\nCONFIG_ZSTD=y\n'
    )
    needed = ask(config).needed(merged)
    assert needed == {
        "NET": "y",
        "BLOCK": "n",
        "VIRTIO": "y",
        "HEAVY": "y",
        "ADDRESS": "0x20",
        "ZSTD": "y",
    }
    text = kconfig.as_fragment(needed, merged, "chosen in menuconfig")
    assert "# override: chosen in menuconfig\n# CONFIG_BLOCK is not set\n" in text
    again = kconfig.merge([asked(PCI="y", BLOCK="y"), fragment(text)])
    assert again.demands["NET"].reason == "chosen in menuconfig"


def test_kconfig_files_that_cannot_be_read_are_one_error(ask: Callable[[str], Model]) -> None:
    model = ask("")
    assert model.facts(["PCI"])["PCI"] is not None
    (model.tree / "Kconfig").write_text("config PCI\n\tbool\n\tunheard-of\n")
    with pytest.raises(BuildError, match=r"Kconfig files of linux 6\.12\.7 can't be read"):
        model.facts(["PCI"])


def test_a_tree_without_a_version_is_no_kernel_tree(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no Makefile"):
        kconfig.version_of(tmp_path)
    (tmp_path / "Makefile").write_text("all:\n")
    with pytest.raises(BuildError, match="names no version"):
        kconfig.version_of(tmp_path)
    (tmp_path / "Makefile").write_text(MAKEFILE.replace("EXTRAVERSION =", "EXTRAVERSION = -rc1"))
    assert kconfig.version_of(tmp_path) == "6.12.7-rc1"


@pytest.mark.parametrize(
    "symbol",
    ["MODULE_SIG", "IMA_APPRAISE_MODSIG", "RANDSTRUCT", "GCC_PLUGIN_LATENT_ENTROPY"],
)
def test_what_would_make_every_build_another_is_named(symbol: str) -> None:
    values = {"MODULES": "y", "RANDSTRUCT_NONE": "y", "BUILD_SALT": '"fixed"'}
    assert list(kconfig.drawn_at_random(values)) == []
    [line] = kconfig.drawn_at_random({**values, symbol: "y"})
    assert line.startswith(f"CONFIG_{symbol} ")
