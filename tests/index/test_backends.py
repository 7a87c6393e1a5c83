"""Every backend against the oracle, on scores; one test runs over all of them."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from lcmem_filter.errors import FilterFailedError, LcmemFilterError, MissingExtraError
from lcmem_filter.index import BACKENDS, MemorizationIndex, exact, faiss
from lcmem_filter.index.backends import make_backend

from .material import build


def unit(rows: int, seed: int, dim: int = 24) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("queries", "k"), [(1, 1), (7, 5), (64, 50), (3, 300)])
def test_proposals_have_the_oracles_scores(name, queries, k, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK", 64)  # several blocks
    stored, asked = unit(300, 0).half(), unit(queries, 1)
    rows = make_backend(name, stored).propose(asked, k)
    assert rows.shape == (queries, k) and rows.dtype == torch.int64
    every = asked @ stored.float().T
    torch.testing.assert_close(
        every.gather(1, rows), every.sort(1, descending=True)[0][:, :k], rtol=0, atol=1e-6
    )
    assert all(len(set(row)) == k for row in rows.tolist())


@pytest.mark.parametrize("name", BACKENDS)
def test_a_search_does_not_depend_on_the_batch(name, tmp_path):
    build(tmp_path)
    index = MemorizationIndex.load(tmp_path / "index", backend=name)
    queries = unit(9, 3, index.head.embedding_dim)
    whole, single = index.search(queries, 4), [index.search(query[None], 4) for query in queries]
    torch.testing.assert_close(
        whole.similarity, torch.cat([hit.similarity for hit in single]), rtol=0, atol=1e-6
    )
    assert torch.equal(whole.rows, torch.cat([hit.rows for hit in single]))
    assert (whole.similarity.diff(dim=1) <= 0).all()


def test_backends_agree_on_an_index(tmp_path):
    build(tmp_path)
    queries = unit(9, 3, 64)
    hits = [MemorizationIndex.load(tmp_path / "index", backend=name).search(queries, 6) for name in BACKENDS]
    for other in hits[1:]:
        torch.testing.assert_close(other.similarity, hits[0].similarity, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_query_that_is_not_finite_is_refused(tmp_path, bad):
    index = build(tmp_path)
    queries = unit(2, 0, 64)
    queries[1, 3] = bad
    with pytest.raises(FilterFailedError, match="not finite"):
        index.search(queries, 1)


def test_torch_keeps_its_number_of_threads():
    before = torch.get_num_threads()
    make_backend("faiss", unit(50, 0).half()).propose(unit(1, 1), 1)
    assert torch.get_num_threads() == before


def test_missing_and_clashing_wheels_are_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lcmem-filter\[cpu\]'"):
        make_backend("faiss", unit(5, 0).half())
    monkeypatch.setattr(faiss, "_is_installed", lambda name: name != "faiss-gpu-cuvs")
    with pytest.raises(MissingExtraError, match="faiss-cpu and faiss-gpu are both installed"):
        faiss.import_faiss()


def test_an_unknown_backend():
    with pytest.raises(LcmemFilterError, match="no search backend 'annoy'; choose one of exact, faiss"):
        make_backend("annoy", unit(5, 0).half())
