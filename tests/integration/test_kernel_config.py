# SPDX-License-Identifier: Apache-2.0
"""The kernel's configuration on Debian's kernel sources, with the kernel's own configurator."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from debian_root import debian_root

from sevkit import kconfig, patches, sandbox
from sevkit.canonical import Json
from sevkit.errors import BuildError, RecipeError
from sevkit.sandbox import Processes, SandboxRunner
from sevkit.stage import Stage
from sevkit.stages.kconfig_tree import build_kconfig_tree
from sevkit.stages.kernel import check_config, merged_config
from sevkit.stages.kernel_source import prepare_source
from sevkit.toolchain import packages

REPOSITORY = Path(__file__).resolve().parents[2]
SHIPPED = ("base", "sev", "virtio-dma", "container", "hardening")
PARAMS: Mapping[str, Json] = {"initramfs": {"compression": "zstd", "placement": "separate"}}
VIRTIO_PATCH = """\
Description: Say it otherwise
Author: A. Person <person@example.org>
Forwarded: no
Last-Update: 2024-05-31

--- a/drivers/virtio/Kconfig
+++ b/drivers/virtio/Kconfig
@@ -1,4 +1,4 @@
-# SPDX-License-Identifier: GPL-2.0-only
+# SPDX-License-Identifier: GPL-2.0
 config VIRTIO_ANCHOR
 \tbool
{context}
"""

pytestmark = pytest.mark.network


def runner(folder: Path, inputs: Mapping[str, Path], root: Path | None = None) -> SandboxRunner:
    for name in ("work", "out"):
        (folder / name).mkdir(parents=True)
    return SandboxRunner(
        title="kernel",
        work=folder / "work",
        inputs=inputs,
        log=folder / "log",
        jobs=2,
        confined=True,
        processes=Processes(),
        on_progress=lambda done, total, note: None,
        root=root,
    )


def source_stage(
    kind: str, source: Path, member: str | None, series: patches.Series
) -> tuple[Stage, dict[str, Path]]:
    params: dict[str, Json] = {
        "member": member,
        "series": {"name": series.name, "patches": [[p.name, p.strip] for p in series.patches]},
    }
    inputs = {"source": source, **{f"patch/{p.name}": p.path for p in series.patches}}
    return Stage(kind, kind, 1, params, dict.fromkeys(inputs, "")), inputs


@pytest.fixture(scope="module", params=["6.12", "6.1"])
def version(request: pytest.FixtureRequest) -> str:
    """The kernel series."""
    return str(request.param)


@pytest.fixture(scope="module")
def package(mirror: None, version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package that holds the kernel's source."""
    folder = tmp_path_factory.mktemp(f"linux-source-{version}")
    folder.chmod(0o755)
    answer = subprocess.run(
        ["apt-get", "-o", "APT::Sandbox::User=root", "download", f"linux-source-{version}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        pytest.skip(f"linux-source-{version} can't be downloaded here: {answer.stderr.strip()}")
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def tree(package: Path, version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small tree, with our patches."""
    series = patches.read_series(REPOSITORY / "patches" / f"linux-{version}")
    member = f"usr/src/linux-source-{version}.tar.xz"
    stage, inputs = source_stage("kconfig_tree", package, member, series)
    folder = tmp_path_factory.mktemp(f"tree-{version}")
    run = runner(folder, inputs)
    build_kconfig_tree(stage, inputs, folder / "out", run)
    subprocess.run(["rm", "-rf", folder / "work"], check=True)
    return folder / "out"


Configured = Callable[..., tuple[kconfig.Merged, Path, SandboxRunner]]


@pytest.fixture
def configured(tree: Path, tmp_path: Path) -> Configured:
    """Configures the small tree with fragments given as texts, after the shipped ones."""

    def configure(
        *shipped: str, tools: Path | None = None, **texts: str
    ) -> tuple[kconfig.Merged, Path, SandboxRunner]:
        paths = {name: REPOSITORY / "kernel-configs" / f"{name}.config" for name in shipped}
        for name, text in texts.items():
            paths[name] = tmp_path / f"{name}.config"
            paths[name].write_text(text)
        merged = merged_config(PARAMS, paths)
        run = runner(Path(tempfile.mkdtemp(dir=tmp_path)), {"tree": tree}, tools)
        return merged, kconfig.configure(tree, merged, run.work, run), run

    return configure


def problem(tree: Path, configured: tuple[kconfig.Merged, Path, SandboxRunner]) -> str:
    merged, config, run = configured
    with pytest.raises(RecipeError) as caught:
        check_config(tree, config, merged, run)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_shipped_fragments_survive_and_are_stable(tree: Path, configured: Configured) -> None:
    merged, config, run = configured(*SHIPPED)
    check_config(tree, config, merged, run)
    before = config.read_bytes()
    make = ["make", "-C", tree, *kconfig.MAKE_VARIABLES, f"O={run.work}", "olddefconfig"]
    run(make, cwd=run.work, reading=[tree])
    assert config.read_bytes() == before


def test_the_model_gives_the_values_of_the_kernels_own_configurator(
    tree: Path, configured: Configured
) -> None:
    merged, config, run = configured(*SHIPPED)
    model = kconfig.Model(tree, config, run.work, run)
    on = {name: value for name, value in kconfig.read_config(config).items() if value != "n"}
    assert {name: value for name, value in model.values().items() if value != "n"} == on
    assert model.needed(merged) == {}


def test_a_symbol_that_does_not_exist_is_an_error(tree: Path, configured: Configured) -> None:
    text = problem(tree, configured("base", own="# why\nCONFIG_VIRTIO_NETT=y\n"))
    assert "own.config:2" in text
    assert "has no such symbol" in text
    assert "CONFIG_VIRTIO_NET" in text


def test_a_forbidden_symbol_that_does_not_exist_is_an_error_too(
    tree: Path, configured: Configured
) -> None:
    text = problem(tree, configured("base", own="# why\n# CONFIG_KSMM is not set\n"))
    assert "own.config:2" in text
    assert "has no such symbol" in text


def test_an_unmet_dependency_is_named(tree: Path, configured: Configured) -> None:
    own = "# why\nCONFIG_SEV_GUEST=y\n# why\n# CONFIG_AMD_MEM_ENCRYPT is not set\n"
    text = problem(tree, configured("base", own=own))
    assert "own.config:2: 'CONFIG_SEV_GUEST=y' is lost, it is n" in text
    assert "AMD_MEM_ENCRYPT is n (own.config:4 forbids it)" in text


def test_a_forbidden_symbol_that_is_selected_names_the_selector(
    tree: Path, configured: Configured
) -> None:
    own = "# why\n# CONFIG_X86_MEM_ENCRYPT is not set\n"
    text = problem(tree, configured("base", "sev", own=own))
    assert "own.config:2: '# CONFIG_X86_MEM_ENCRYPT is not set' is lost, it is y" in text
    assert "selected by AMD_MEM_ENCRYPT (sev.config:" in text


def test_an_overridden_symbol_names_both_fragments(configured: Configured) -> None:
    line = "# CONFIG_AMD_MEM_ENCRYPT is not set\n"
    with pytest.raises(RecipeError) as caught:
        configured("base", "sev", own=f"# why\n{line}")
    assert "own.config:2" in str(caught.value)
    assert "sev.config:" in str(caught.value)
    merged, _, _ = configured("base", "sev", own=f"# override: a test\n{line}")
    assert merged.demands["AMD_MEM_ENCRYPT"].value == "n"


def test_a_locked_configuration_is_taken_as_it_is_or_refused(
    tree: Path, configured: Configured, tmp_path: Path
) -> None:
    merged, config, run = configured(*SHIPPED)
    copy = run.work / "copy"
    shutil.copytree(tree, copy, symlinks=True)
    taken = kconfig.take_locked(copy, config, run)
    assert kconfig.read_config(taken) == kconfig.read_config(config)
    check_config(copy, taken, merged, run)
    other = tmp_path / "other.config"
    other.write_text(config.read_text().replace("CONFIG_64BIT=y", "# CONFIG_64BIT is not set"))
    with pytest.raises(BuildError, match="does not fit this source and compiler") as caught:
        kconfig.take_locked(copy, other, run)
    assert "64BIT: n → y" in caught.value.why


@pytest.fixture(scope="module")
def with_plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tools whose compiler takes plugins; those of `sevkit.toolchain` have none for it."""
    folder = tmp_path_factory.mktemp("with-plugins")
    return debian_root(folder, (*packages(), "gcc-14-plugin-dev"), "trixie")


def test_what_a_host_may_have_beside_its_compiler_changes_no_configuration(
    configured: Configured, with_plugins: Path
) -> None:
    folders = list(with_plugins.glob("usr/lib/gcc/*/14/plugin/include"))
    assert [(folder / "plugin-version.h").is_file() for folder in folders] == [True]
    _, config, _ = configured(*SHIPPED, tools=with_plugins)
    before = config.read_bytes()
    assert b"CONFIG_GCC_PLUGINS" not in before
    hidden = folders[0].rename(folders[0].with_name("elsewhere"))
    try:
        _, config, _ = configured(*SHIPPED, tools=with_plugins)
        assert config.read_bytes() == before
    finally:
        hidden.rename(folders[0])


def test_what_is_drawn_at_each_build_is_refused(
    tree: Path, configured: Configured, with_plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is hidden here, for without plugins two of the three are lost already."""
    monkeypatch.setattr(sandbox, "_HIDDEN", "nothing")
    modules = "# M.\nCONFIG_MODULES=y\nCONFIG_GCC_PLUGINS=y\n"
    salt = '# S.\nCONFIG_BUILD_SALT="of the recipe"\n'
    merged, config, run = configured(small=modules + salt, tools=with_plugins)
    check_config(tree, config, merged, run)
    assert kconfig.read_config(config)["BUILD_SALT"] == '"of the recipe"'
    asked = ("MODULE_SIG", "RANDSTRUCT_FULL", "GCC_PLUGIN_LATENT_ENTROPY")
    own = modules + "# D.\n" + "".join(f"CONFIG_{symbol}=y\n" for symbol in asked)
    said = problem(tree, configured(small=own, tools=with_plugins))
    assert "CONFIG_MODULE_SIG makes a key to sign modules with" in said
    assert "CONFIG_RANDSTRUCT orders the members of structures by a seed" in said
    assert "CONFIG_GCC_PLUGIN_LATENT_ENTROPY puts random numbers into the code" in said


def test_why_answers_for_a_symbol_of_ours(tree: Path, configured: Configured) -> None:
    merged, config, run = configured(*SHIPPED)
    text = kconfig.why(
        "CONFIG_VIRTIO_FORCE_DMA_API", merged, kconfig.Model(tree, config, run.work, run)
    )
    assert "CONFIG_VIRTIO_FORCE_DMA_API is y (bool)" in text
    assert "drivers/virtio/Kconfig:" in text
    assert "required     virtio-dma.config:" in text


def test_what_menuconfig_would_change_becomes_a_fragment_that_gives_it_again(
    tree: Path, configured: Configured, tmp_path: Path
) -> None:
    merged, config, run = configured("base")
    script = [tree / "scripts" / "config", "--file", config, "--enable", "CONFIGFS_FS"]
    run([*script, "--enable", "SECURITYFS"], cwd=run.work, reading=[tree])
    make = ["make", "-C", tree, *kconfig.MAKE_VARIABLES, f"O={run.work}", "olddefconfig"]
    run(make, cwd=run.work, reading=[tree])
    wanted = config.read_text()
    needed = kconfig.Model(tree, config, run.work, run).needed(merged)
    assert needed == {"CONFIGFS_FS": "y", "SECURITYFS": "y"}
    chosen = tmp_path / "chosen.config"
    chosen.write_text(kconfig.as_fragment(needed, merged, "chosen in menuconfig"))
    again = kconfig.merge(
        [
            kconfig.Fragment("before", tuple(merged.demands.values())),
            kconfig.parse_fragment(chosen),
        ]
    )
    assert kconfig.configure(tree, again, run.work, run).read_text() == wanted


@pytest.mark.parametrize("version", ["6.12"], indirect=True)
def test_the_small_tree_gives_the_configuration_of_the_whole_one(
    package: Path, version: str, configured: Configured, tmp_path: Path
) -> None:
    series = patches.read_series(REPOSITORY / "patches" / f"linux-{version}")
    member = f"usr/src/linux-source-{version}.tar.xz"
    stage, inputs = source_stage("kernel", package, member, series)
    run = runner(tmp_path / "whole", inputs)
    source = prepare_source(stage, inputs, run)
    merged, small, _ = configured(*SHIPPED)
    whole = kconfig.configure(source.path, merged, source.path, run)
    assert whole.read_bytes() == small.read_bytes()
    assert [patch.name for patch in source.patches] == [patch.name for patch in series.patches]


@pytest.mark.parametrize("version", ["6.12"], indirect=True)
def test_a_patch_with_fuzz_is_refused_on_the_real_tree(tree: Path, tmp_path: Path) -> None:
    def prepare(name: str, context: str) -> tuple[str, ...]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "series").write_text("say.patch\n")
        (folder / "say.patch").write_text(VIRTIO_PATCH.format(context=context))
        stage, inputs = source_stage("kernel", tree, None, patches.read_series(folder))
        run = runner(tmp_path / f"{name}-run", inputs)
        return prepare_source(stage, inputs, run).moved_hunks

    assert prepare("good", " ") == ()
    with pytest.raises(BuildError) as caught:
        prepare("fuzzy", " something else")
    assert "patch say.patch does not apply to linux 6.12." in str(caught.value)
    assert "drivers/virtio/Kconfig: hunk 1 of 1 failed at line 1" in str(caught.value)
    assert "fuzz" in caught.value.hint
