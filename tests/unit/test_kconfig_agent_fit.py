# SPDX-License-Identifier: Apache-2.0
"""An agent and a kernel that do not fit are an error that names need, symbol and fix."""

from pathlib import Path

import pytest
from image_samples import CONFIG, Bench, recipe
from pydantic import ValidationError

from sevkit.errors import RecipeError
from sevkit.kconfig.agent_fit import KNOWN, NEEDS, check_early, check_fit, known_agent, unmet
from sevkit.kconfig.fragment import parse_fragment
from sevkit.stages.image import plan_image

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-agent.md"
FRAGMENTS = Path(__file__).resolve().parents[2] / "kernel-configs"
KATA = b"\x7fELF...kata-agent\0.../run/kata-containers/shared..."


HAS = ("DEVTMPFS", "VSOCKETS", "VIRTIO_VSOCKETS")


def config_with(*symbols: str) -> str:
    return CONFIG + "".join(f"CONFIG_{symbol}=y\n" for symbol in symbols)


def test_every_need_has_symbols_and_known_agents_have_known_needs() -> None:
    assert all(NEEDS.values())
    assert all(need in NEEDS for agent in KNOWN for need in agent.needs)


def test_a_need_that_is_no_need_is_refused() -> None:
    agent = {"path": Path("agent"), "binary": "a", "needs": ("vsock",)}
    assert recipe(agent=agent).agent.needs == ("vsock",)
    for wrong in (("vsocks",), ("vsock", "vsock")):
        with pytest.raises(ValidationError):
            recipe(agent={**agent, "needs": wrong})


def test_a_kernel_that_has_everything_fits() -> None:
    config = config_with("VSOCKETS", "VIRTIO_VSOCKETS", "VIRTIO_FS")
    check_fit(["vsock", "virtiofs"], b"", config)
    check_fit([], b"", "")


def test_what_is_missing_and_what_is_a_module_is_named_with_need_symbol_and_fix() -> None:
    config = config_with("VSOCKETS", "VIRTIO_FS") + "CONFIG_VIRTIO_VSOCKETS=m\n"
    with pytest.raises(RecipeError) as caught:
        check_fit(["virtiofs", "vsock", "overlay"], b"", config)
    error = caught.value
    assert error.what == "the agent and the kernel do not fit: no vsock, no overlay"
    assert error.why.splitlines() == [
        "vsock: CONFIG_VIRTIO_VSOCKETS is a module",
        "overlay: CONFIG_OVERLAY_FS is not set",
    ]
    assert "CONFIG_VIRTIO_VSOCKETS=y, CONFIG_OVERLAY_FS=y" in error.hint
    assert "sevkit kconfig why VIRTIO_VSOCKETS" in error.hint


def test_a_symbol_whose_name_begins_alike_does_not_count() -> None:
    assert [one.symbol for one in unmet(["overlay"], "CONFIG_OVERLAY_FS_INDEX=y\n")] == [
        "OVERLAY_FS"
    ]


def test_a_kata_agent_is_known_by_its_bytes_and_held_to_its_own_needs() -> None:
    assert known_agent(KATA) is KNOWN[0]
    assert known_agent(b"\x7fELF speaks of kata-agent") is None
    symbols = {symbol for need in KNOWN[0].needs for symbol in NEEDS[need]}
    check_fit([], KATA, config_with(*symbols))
    with pytest.raises(RecipeError, match=r"agent \(kata-agent\) .* no vsock") as caught:
        check_fit([], KATA, config_with(*(symbols - {"VIRTIO_VSOCKETS"})))
    assert "the recipe has no agent.needs" in caught.value.why


def test_what_the_recipe_says_goes_before_what_is_known() -> None:
    check_fit(["proc"], KATA, config_with("PROC_FS"))


def test_a_fragment_that_forbids_a_need_is_named_before_anything_is_built() -> None:
    check_early(["9p"], {"VSOCKETS": "small.config:3"})
    with pytest.raises(RecipeError, match="no vsock") as caught:
        check_early(["9p", "vsock"], {"VSOCKETS": "small.config:3"})
    assert caught.value.why == "vsock: small.config:3 forbids CONFIG_VSOCKETS"


class WithFragments(Bench):
    """A bench whose kernel has fragments."""

    def fragment(self, name: str) -> Path:
        return self.folder / f"{name}.config"


@pytest.mark.parametrize(
    ("last", "fits"),
    [
        ("# override: smaller\n# CONFIG_VSOCKETS is not set\n", False),
        ("# Other.\nCONFIG_TUN=y\n", True),
    ],
)
def test_planning_an_image_holds_the_needs_against_the_fragments(
    tmp_path: Path, last: str, fits: bool
) -> None:
    agent = {"path": Path("agent"), "binary": "a", "needs": ("vsock",)}
    bench = WithFragments(tmp_path, recipe(agent=agent))
    (tmp_path / "base.config").write_text("# Host.\nCONFIG_VSOCKETS=y\n")
    (tmp_path / "sev.config").write_text(last)
    bench.others()
    bench.firmware()
    if fits:
        assert plan_image(bench).params["agent_needs"] == ["vsock"]  # type: ignore[arg-type]
        return
    with pytest.raises(RecipeError, match="do not fit: no vsock") as caught:
        plan_image(bench)  # type: ignore[arg-type]
    assert caught.value.why == "vsock: sev.config:2 forbids CONFIG_VSOCKETS"


def test_an_image_with_a_misfit_is_not_published(tmp_path: Path) -> None:
    for place, needs in (("good", ()), ("bad", ("overlay",))):
        (tmp_path / place).mkdir()
        agent = {"path": Path("agent"), "binary": "a", "needs": needs}
        bench = WithFragments(tmp_path / place, recipe(agent=agent))
        for name in ("base", "sev"):
            (bench.folder / f"{name}.config").write_text("# Any.\nCONFIG_PCI=y\n")
        bench.others()
        bench.firmware()
        if not needs:
            bench.image()
            continue
        with pytest.raises(RecipeError, match="no overlay"):
            bench.image()


def test_no_shipped_fragment_forbids_what_our_agent_and_kata_s_need() -> None:
    said = {
        demand.symbol: demand.value
        for name in ("base", "sev", "virtio-dma", "container", "hardening")
        for demand in parse_fragment(FRAGMENTS / f"{name}.config").demands
    }
    for symbol in ("PROC_FS", "OVERLAY_FS", "VIRTIO_VSOCKETS", "UNIX98_PTYS", "MEMCG"):
        assert said[symbol] == "y"
    assert not [s for need in KNOWN[0].needs for s in NEEDS[need] if said.get(s) == "n"]


def test_the_page_names_every_need_and_shows_the_error_as_it_is() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [need for need in NEEDS if f"`{need}`" not in text] == []
    with pytest.raises(RecipeError) as caught:
        check_fit(["devtmpfs", "vsock", "ext4"], b"", config_with(*HAS))
    assert f"```text\nsevkit: error: {caught.value}\n```" in text
