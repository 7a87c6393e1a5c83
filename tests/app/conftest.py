"""One pipeline, one index and its training images for every test of the page."""

from __future__ import annotations

import pytest

from lcmem_filter.app import Examiner
from lcmem_filter.index import MemorizationIndex

from ..generation.material import material


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("app")
    material(made)
    return made


@pytest.fixture(scope="session")
def index(folder):
    return MemorizationIndex.load(folder / "index")


@pytest.fixture(scope="session")
def examiner(index):
    return Examiner(index)
