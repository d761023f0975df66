# SPDX-License-Identifier: Apache-2.0
"""Made-up images that several modules of tests look at."""

from pathlib import Path

import image_samples
import pytest
from export_samples import changed
from test_firmware_verifier import CHECKS


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose firmware takes no hashes."""
    return image_samples.image(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose firmware measures and checks the kernel."""
    return image_samples.measured_image(tmp_path_factory.mktemp("measured"), CHECKS)


@pytest.fixture
def hashed(measured: Path, tmp_path: Path) -> Path:
    """The same image, to be written to."""
    return changed(measured, tmp_path / "hashed")
