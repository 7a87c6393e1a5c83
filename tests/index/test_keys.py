"""What an index is searched by."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from lcmem_filter.errors import CorruptArtifactError, FilterFailedError, LcmemFilterError
from lcmem_filter.exemption import IndexWithout
from lcmem_filter.index import BACKENDS, MemorizationIndex
from lcmem_filter.index import build as building
from lcmem_filter.latents import outlines

from .material import build


@pytest.mark.parametrize("name", BACKENDS)
def test_a_training_image_is_nearest_to_itself_by_either_key(tmp_path, monkeypatch, name):
    monkeypatch.setattr(building, "SHARD_ROWS", 8)  # several shards
    build(tmp_path)
    index = MemorizationIndex.load(tmp_path / "index", backend=name)
    rows = torch.arange(20)
    lying = outlines(index.latents(rows))
    torch.testing.assert_close(index.outlines(rows), lying, rtol=0, atol=1e-3)
    assert torch.equal(index.outlines(rows[None, 3:5]), index.outlines(rows)[None, 3:5])
    assert index.propose(lying, 1, by="outlines")[:, 0].tolist() == rows.tolist()
    assert index.propose(index.embeddings(rows), 1)[:, 0].tolist() == rows.tolist()
    every = (lying[:3] @ lying.T).argsort(1, descending=True)
    assert torch.equal(index.propose(lying[:3], 5, by="outlines"), every[:, :5])
    assert index.propose(lying[:3], 1000, by="outlines").shape == (3, 20)


def test_what_is_left_out_is_found_by_no_key(tmp_path):
    index = build(tmp_path)
    asked = torch.arange(3, 6)
    without = IndexWithout(index, [index.records[4].id])
    for by, queries in (("embeddings", index.embeddings(asked)), ("outlines", index.outlines(asked))):
        rows = without.propose(queries, 30, by)
        assert rows.shape == (3, 19) and not (rows == 4).any()
        assert rows[[0, 2], 0].tolist() == [3, 5]


def test_outlines_are_computed_once_for_the_index_and_what_shares_it(tmp_path, monkeypatch):
    index = build(tmp_path)
    without = IndexWithout(index, [index.records[4].id])
    before = without.outlines(torch.arange(20))
    monkeypatch.setattr("lcmem_filter.index.keys.outlines", None)
    assert torch.equal(index.outlines(torch.arange(20)), before)
    index.propose(before, 3, by="outlines")


def test_outlines_that_are_not_finite_are_refused(tmp_path):
    index = build(tmp_path)
    with pytest.raises(FilterFailedError, match="not finite"):
        index.propose(torch.full((1, 256), torch.nan), 3, by="outlines")
    assert index._latents is not None
    (file,) = index._latents._files
    latents = np.load(file)
    latents[5, 0, 0, 0] = np.inf
    with file.open("r+b") as opened:  # as if it had been built so
        np.save(opened, latents)
    index._latents._loaded = [(os.stat(file).st_ino, os.stat(file).st_size, os.stat(file).st_mtime_ns)]
    with pytest.raises(CorruptArtifactError, match="holds latents that are not finite; build it again"):
        index.propose(torch.ones(1, 256), 3, by="outlines")


def test_a_key_that_there_is_not_is_told(tmp_path):
    index = build(tmp_path)
    with pytest.raises(
        LcmemFilterError, match="no key 'outline'; an index is searched by embeddings or outlines"
    ):
        index.propose(torch.ones(1, 256), 3, by="outline")  # type: ignore[arg-type]
    assert index.embeddings_of([]).shape == (0, index.head.embedding_dim)


def test_an_index_without_latents_has_no_outlines(tmp_path):
    index = build(tmp_path, keep_latents=False)
    with pytest.raises(LcmemFilterError, match="has no outlines; build it without --no-latents"):
        index.propose(torch.ones(1, 256), 3, by="outlines")
    assert index.propose(index.embeddings(torch.arange(2)), 1)[:, 0].tolist() == [0, 1]


def test_latents_that_changed_since_they_were_loaded_give_no_outlines(tmp_path):
    index = build(tmp_path)
    assert index._latents is not None
    (file,) = index._latents._files
    os.replace(file, file.with_suffix(".before"))
    with pytest.raises(CorruptArtifactError, match="is missing"):
        index.outlines(torch.arange(3))
    np.save(file, np.zeros((20, 4, 16, 16), dtype=np.float16))
    with pytest.raises(CorruptArtifactError, match="has changed since the index was loaded"):
        index.outlines(torch.arange(3))
