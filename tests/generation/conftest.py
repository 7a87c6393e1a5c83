"""One pipeline and one index for every test of jobs."""

from __future__ import annotations

import pytest

from .material import loaded, material


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("generation")
    material(made)
    return made


@pytest.fixture(scope="session")
def pipe(folder):
    return loaded(folder)
