"""Alignments, the background and the runner-up, and the whole statistic, against loops written out."""

from __future__ import annotations

import functools
import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lcmem_filter import shortlist, verification
from lcmem_filter.alignment import aligned_similarity, alignments, as_they_lie
from lcmem_filter.audit.duplicates import _alike
from lcmem_filter.baselines import Searcher, make_baseline
from lcmem_filter.described import LAID_OVER, Candidates, Parts, Query, describe_parts, parts_between
from lcmem_filter.errors import CorruptArtifactError, FilterFailedError, LatentSpaceError
from lcmem_filter.exemption import IndexWithout
from lcmem_filter.head import LCMemHead
from lcmem_filter.images import open_images
from lcmem_filter.index import MemorizationIndex
from lcmem_filter.latents import canonical, normalise, outlines
from lcmem_filter.matching import alike_under_warps, all_warps
from lcmem_filter.shortlist import (
    MARGINS,
    SHORTLIST,
    InPlace,
    _one_of_each_picture,
    candidates_of_each,
    middles,
    shortlisted,
)
from lcmem_filter.standing import (
    BACKGROUND,
    MOST_BACKGROUND,
    RUNNER_UP_WEIGHT,
    SAME_IMAGE,
    background_of,
    combine,
    local_similarity,
    relative_similarity,
    repeats,
    stand_out,
    taken_together,
    told_apart,
)
from lcmem_filter.training import TrainingConfig
from lcmem_filter.training.validation import _Search, mild_copies, store
from lcmem_filter.training.views import generator_for, half_formed
from lcmem_filter.training.weights import with_descriptors
from lcmem_filter.verification import (
    BACKGROUND_UNDER_WARPS,
    RUNNER_UP_UNDER_WARPS,
    compare,
    compared_by,
    score_latents,
    without_outliers,
)

from tests.index.material import build, head, pictures, saved_encoder
from tests.tiny import RESOLUTION, encode_images, picture, tiny_vae, write_pictures


def smooth(rows: int, seed: int = 0, channels: int = 4, side: int = 16) -> torch.Tensor:
    coarse = torch.randn(rows, channels, side // 2, side // 2, generator=torch.Generator().manual_seed(seed))
    return normalise(torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear"))


def test_aligned_similarity_is_the_best_mean_correlation_over_alignments():
    query, candidates = smooth(1)[0], smooth(3, seed=1)
    expected = [
        max(
            np.mean([np.corrcoef(moved[c].flatten(), other[c].flatten())[0, 1] for c in range(4)])
            for moved in alignments(query).numpy()
        )
        for other in candidates.numpy()
    ]
    np.testing.assert_allclose(aligned_similarity(query, candidates).numpy(), expected, atol=1e-5)


def test_as_they_lie_is_the_mean_correlation_as_it_is_or_mirrored():
    queries, stored = smooth(2), smooth(10, seed=5).unflatten(0, (2, 5))
    stored[0, 3], stored[1, 4] = queries[0], queries[1].flip(-1)
    found = as_they_lie(queries, stored)
    for row, candidate in itertools.product(range(2), range(5)):
        expected = [
            np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(pose, other, strict=True)])
            for pose in (queries[row].numpy(), queries[row].flip(-1).numpy())
            for other in [stored[row, candidate].numpy()]
        ]
        assert found[row, candidate] == pytest.approx(max(expected), abs=1e-4)
    assert found[0, 3] == pytest.approx(1, abs=1e-4) and found[1, 4] == pytest.approx(1, abs=1e-4)


def test_alignments_are_all_different_and_hold_the_latent_itself():
    moved = alignments(smooth(1)[0])
    assert moved.shape == (270, 4, 16, 16)
    distance = torch.cdist(moved.flatten(1), moved.flatten(1)) + torch.eye(270) * 99
    assert distance.min() > 1e-3
    assert min((moved - smooth(1)[0]).flatten(1).norm(dim=1)) < 1e-4
    assert min((moved - smooth(1)[0].flip(-1)).flatten(1).norm(dim=1)) < 1e-4


@functools.cache
def head_with(kind: Parts) -> LCMemHead:
    """An untrained head that compares by ``kind``."""
    torch.manual_seed(0)
    if kind in LAID_OVER:
        recipe = TrainingConfig(match_dim=16, deformed=kind != "descriptors")
        return with_descriptors(head(), ("sd",), recipe)
    return head() if kind == "tokens" else LCMemHead.create("micro", {"sd": 4}, token_dim=0)


def compared(samples: torch.Tensor, stored: torch.Tensor, kind: Parts, with_parts: bool = True):
    """``compare`` of each sample with all of ``stored``."""
    network = head_with(kind)
    given = [network.embed(stored, "sd"), describe_parts(network, stored, "sd", kind)]
    embedding, parts = (one.expand(len(samples), *one.shape) for one in given)
    query = Query.of(network, samples, "sd", kind)
    return compare(query, Candidates(embedding, parts if with_parts else None))


KINDS = pytest.mark.parametrize("kind", ["descriptors", "deformed descriptors", "tokens", "latents"])


@KINDS
def test_a_head_compares_by_the_best_that_it_has(kind):
    network = head_with(kind)
    assert parts_between(network, "sd", "sd") == kind
    assert network.has_descriptors("sd") == (kind in LAID_OVER)
    if kind not in LAID_OVER:
        with pytest.raises(ValueError, match="no descriptors of latent space 'sd'"):
            network.descriptors(smooth(1), "sd")


def test_spaces_that_a_head_has_no_descriptors_for_are_compared_by_tokens():
    torch.manual_seed(0)
    two = LCMemHead.create("micro", {"sd": 4, "other": 4})
    network = with_descriptors(two, ("sd",), TrainingConfig(match_dim=16))
    found = [parts_between(network, a, b) for a in network.spaces for b in network.spaces]
    assert found == ["descriptors", "tokens", "tokens", "tokens"]
    bare = LCMemHead.create("micro", {"sd": 4, "other": 4}, token_dim=0)
    assert [parts_between(bare, "sd", b) for b in bare.spaces] == ["latents", None]
    described = with_descriptors(bare, ("sd",), TrainingConfig(match_dim=16))
    assert [parts_between(described, a, a, laid_over=False) for a in bare.spaces] == [None, "latents"]
    assert parts_between(network, "sd", "sd", laid_over=False) == "tokens"


@KINDS
@pytest.mark.parametrize("with_parts", [True, False])
def test_a_copy_upside_down_is_found(kind, with_parts):
    stored = smooth(12)
    found = compared(stored[:3].flip(-2), stored, kind, with_parts)
    assert found.score.argmax(1).tolist() == [0, 1, 2]
    for value in (found.score, found.cosine):
        torch.testing.assert_close(value[:, :3].diagonal(), torch.ones(3), rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", LAID_OVER)
def test_under_warps_parts_alone_decide(kind):
    stored, network = smooth(30), head_with(kind)
    samples = smooth(2, seed=5)
    found = compared(samples, stored, kind)
    poses = [network.descriptors(pose, "sd") for pose in (samples, samples.flip(-2))]
    candidates = network.descriptors(stored, "sd").expand(2, -1, -1, -1, -1)
    alike = torch.stack([alike_under_warps(pose, candidates, kind != "descriptors") for pose in poses]).amax(
        0
    )
    torch.testing.assert_close(found.parts, alike, rtol=0, atol=1e-4)
    for row in range(2):
        ordered = sorted(alike[row].tolist(), reverse=True)
        background = min(math.fsum(ordered[BACKGROUND_UNDER_WARPS]) / 4, MOST_BACKGROUND)
        second = min(ordered[1], MOST_BACKGROUND)
        expected = (1 - RUNNER_UP_UNDER_WARPS) * (ordered[0] - background) / (1 - background)
        expected += RUNNER_UP_UNDER_WARPS * (ordered[0] - second) / (1 - second)
        assert float(found.score[row].max()) == pytest.approx(expected, abs=1e-3)


def test_a_crop_that_was_turned_and_mirrored_is_found_under_warps():
    stored = smooth(20)
    where = torch.nn.functional.affine_grid(
        all_warps(torch.device("cpu"))[301].expand(20, 2, 3), [20, 1, 16, 16], align_corners=False
    )
    crops = normalise(
        torch.nn.functional.grid_sample(stored, where, padding_mode="reflection", align_corners=False)
    )
    laid_over, as_they_lie = (compared(crops, stored, kind).score for kind in ("descriptors", "tokens"))
    found, lost = ((s.argmax(1) == torch.arange(20)).float().mean() for s in (laid_over, as_they_lie))
    assert found > 0.8 > 0.6 > lost


@KINDS
def test_portions_change_nothing(kind, monkeypatch):
    samples, stored = smooth(5, seed=2), smooth(12)
    one_by_one = compared(samples, stored, kind)
    monkeypatch.setattr("lcmem_filter.verification.AT_ONCE", {"cpu": 3})
    for a, b in zip(
        (one_by_one.score, one_by_one.parts),
        (lambda c: (c.score, c.parts))(compared(samples, stored, kind)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_mild_copies_are_more_alike_aligned_than_as_they_are():
    latents = smooth(20)
    copies = normalise(mild_copies(latents, generator_for(0)))
    aligned = torch.stack([aligned_similarity(c, o[None])[0] for c, o in zip(copies, latents, strict=True)])
    plain = (copies * latents).flatten(1).sum(1) / (
        copies.flatten(1).norm(dim=1) * latents.flatten(1).norm(dim=1)
    )
    assert (aligned >= plain - 1e-6).all() and aligned.min() > 0.94 > plain.min()
    assert (1 - aligned).mean() < 0.7 * (1 - plain).mean()


def test_relative_similarity_is_the_distance_from_the_background():
    similarity = torch.rand(3, SHORTLIST, generator=torch.Generator().manual_seed(0)) * 0.7
    relative = relative_similarity(similarity)
    for row in range(3):
        background = sorted(similarity[row].tolist(), reverse=True)[BACKGROUND]
        mean = math.fsum(background) / len(background)
        expected = [(value - mean) / (1 - mean) for value in similarity[row].tolist()]
        np.testing.assert_allclose(relative[row].numpy(), expected, rtol=1e-4)


@given(st.integers(1, SHORTLIST), st.floats(0.0, 1.0))
@settings(deadline=None, max_examples=40)
def test_an_exact_copy_scores_one_however_often_it_stands_in_the_index(times, others):
    similarity = torch.full((1, SHORTLIST), min(others, 0.999))
    similarity[0, :times] = 1.0
    torch.testing.assert_close(combine(similarity, similarity).max(), torch.tensor(1.0))


def test_a_close_copy_of_an_image_that_stands_in_the_index_often_still_stands_out():
    similarity = torch.full((1, SHORTLIST), 0.95)
    assert combine(similarity, similarity).max() > 0.6  # thresholds of the shipped head lie near 0.53


def test_standing_out_is_from_the_background_and_from_the_runner_up():
    alike = torch.tensor([[0.2, 0.8, 0.6, 0.8]])
    repeated = torch.tensor([[False, False, False, True]])
    found = stand_out(alike, torch.tensor([[0.5]]), repeated)
    for place, runner_up in enumerate((0.8, 0.6, 0.8, 0.6)):
        value = float(alike[0, place])
        expected = (1 - RUNNER_UP_WEIGHT) * (value - 0.5) / 0.5
        expected += RUNNER_UP_WEIGHT * (value - runner_up) / (1 - runner_up)
        assert float(found[0, place]) == pytest.approx(expected, abs=1e-6)
    assert float(stand_out(torch.tensor([[0.7]]), torch.tensor([[0.0]]))) == pytest.approx(0.7)


@pytest.mark.parametrize("seed", range(8))
def test_images_of_one_identity_are_not_each_others_runner_up(seed):
    draw = torch.Generator().manual_seed(seed)
    alike, identities = torch.rand(2, 12, generator=draw), torch.randint(0, 5, (2, 12), generator=draw)
    repeated = torch.rand(2, 12, generator=draw) < 0.2
    background = background_of(alike, repeated, slice(1, 3), identities)
    found = stand_out(alike, background, repeated, 0.5, identities)
    for row in range(2):
        own, names = alike[row].tolist(), identities[row].tolist()
        best: dict[int, float] = {}
        for value, name, again in zip(own, names, repeated[row].tolist(), strict=True):
            if not again:
                best[name] = max(value, best.get(name, 0.0))
        ordered = sorted(best.values(), reverse=True)
        mean = sum(ordered[1:3]) / len(ordered[1:3])
        assert float(background[row, 0]) == pytest.approx(mean)
        for place, (value, name) in enumerate(zip(own, names, strict=True)):
            if repeated[row, place]:
                continue
            rival = min(max(v for other, v in best.items() if other != name), MOST_BACKGROUND)
            low = min(mean, MOST_BACKGROUND)
            expected = 0.5 * (value - low) / (1 - low) + 0.5 * (value - rival) / (1 - rival)
            assert float(found[row, place]) == pytest.approx(expected, abs=1e-5)


def test_a_shortlist_of_few_identities_is_compared_as_if_none_were_known():
    known = torch.tensor([[7, 7, 7, 7, 3, 3, 3, 3], [7, 7, 3, 4, 5, 6, 8, 9]])
    assert told_apart(known, 3).tolist() == [list(range(8)), known[1].tolist()]
    assert torch.equal(told_apart(known, 2), known)
    random = torch.nn.functional.normalize(
        torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(0)), dim=2
    )
    query, each = Query(random[:1, :1].expand(2, -1, -1), None, None), torch.arange(40)[None]
    named = {"none": None, "two": each // 20, "ten": each // 4, "own": each}
    of = {name: compare(query, Candidates(random[1:], None, ids)).score for name, ids in named.items()}
    assert torch.equal(of["two"], of["none"]) and torch.equal(of["own"], of["none"])
    assert (of["ten"] - of["none"]).abs().max() > 1e-3


def test_identities_of_one_image_each_change_nothing():
    draw = torch.Generator().manual_seed(0)
    alike, repeated = torch.rand(4, 50, generator=draw), torch.rand(4, 50, generator=draw) < 0.3
    each = torch.arange(50).expand(4, 50)
    plain = stand_out(alike, background_of(alike, repeated), repeated)
    assert torch.equal(
        plain, stand_out(alike, background_of(alike, repeated, identities=each), repeated, identities=each)
    )


def test_a_copy_stands_out_more_where_the_index_knows_whose_images_are_like_it(tmp_path):
    pictures(tmp_path / "train", range(30), identities=3)
    named = build(tmp_path, images=30)
    (tmp_path / "bare" / "train").mkdir(parents=True)
    for file in sorted((tmp_path / "train").rglob("*.png")):
        shutil.copy(file, tmp_path / "bare" / "train")
    bare = build(tmp_path / "bare", images=30)
    assert (named.identities >= 0).all() and (bare.identities < 0).all()
    rows = torch.arange(30)[None]
    assert torch.equal(verification._stored(named, rows, None).identities, named.identities[None])
    asked = named.latents(torch.arange(30)) + 0.3 * smooth(30, seed=5)
    told, untold = (
        torch.tensor([one.score for one in score_latents(index, asked, "sd")]) for index in (named, bare)
    )
    assert (told >= untold - 1e-3).all() and (told > untold + 0.003).sum() > 3


def test_images_of_an_identity_that_no_index_names_do_not_hide_each_other():
    network, base = head_with("descriptors"), smooth(8, seed=1)
    stored = torch.cat([base[i : i + 1] + 0.35 * smooth(4, seed=10 + i) for i in range(8)])
    parts = describe_parts(network, stored, "sd", "descriptors")[None]
    draw = torch.Generator().manual_seed(0)
    embedding = torch.nn.functional.normalize(torch.randn(1, 32, 64, generator=draw), dim=2)
    assert not repeats(embedding).any()
    for one in range(8):
        shown = describe_parts(network, base[one : one + 1].expand(2, 1, -1, -1, -1), "sd", "descriptors")
        query = Query(embedding[:, :1].expand(2, 1, -1), shown, "descriptors")
        of_first = torch.arange(32).where(torch.arange(32) // 4 != one, 4 * one)[None]
        plain, named = (compare(query, Candidates(embedding, parts, ids)).score for ids in (None, of_first))
        concluding = replace(query, same_identity=0.85)  # between those of one picture and of two
        assert torch.equal(compare(concluding, Candidates(embedding, parts)).score, named)
        assert (named > plain + 1e-3)[0, 4 * one : 4 * one + 4].any()
        others = Candidates(embedding, parts, torch.arange(32)[None])  # an index that names them is believed
        assert torch.equal(compare(concluding, others).score, plain)
        few = Candidates(
            embedding, parts, torch.arange(32)[None] // 8
        )  # too few to be told apart: as if unknown
        assert torch.equal(compare(concluding, few).score, named) and torch.equal(
            compare(query, few).score, plain
        )
        unknown = -1 - torch.arange(32)[None]
        assert torch.equal(compare(concluding, Candidates(embedding, parts, unknown)).score, named)
        some_named = unknown.where(torch.arange(32) % 4 != 1, 50 + torch.arange(32) // 4)  # one of each
        assert torch.equal(compare(concluding, Candidates(embedding, parts, some_named)).score, named)
        others = some_named.where(
            torch.arange(32) % 4 > 1, 90 + torch.arange(32)
        )  # two of each, as different
        apart = compare(concluding, Candidates(embedding, parts, others)).score
        assert not torch.equal(apart, named) and not torch.equal(apart, plain)
        never = replace(query, same_identity=0.99)
        assert torch.equal(compare(never, Candidates(embedding, parts)).score, plain)


def test_an_index_that_names_some_identities_is_believed_and_those_of_the_others_are_concluded(tmp_path):
    """Of 36 pictures, 12 are in subfolders of three each; or all are, or none is."""
    encoder, scores, likely = saved_encoder(tmp_path), {}, 0.7
    head_with("descriptors").save_pretrained(tmp_path / "head")
    heads = {
        least: LCMemHead.from_pretrained(tmp_path / "head", same_identity=least) for least in (0.0, likely)
    }
    for layout, inside in (("none", 0), ("some", 12), ("all", 36)):
        write_pictures(tmp_path / layout, range(inside), 3)
        source = (
            pictures(tmp_path / layout, range(inside, 36)) if inside < 36 else open_images(tmp_path / layout)
        )
        for least, network in heads.items():
            output, shape = (
                tmp_path / f"index-{layout}-{least}",
                {"resolution": RESOLUTION, "progress": False},
            )
            index = MemorizationIndex.build(source, encoder, network, output, **shape)
            assert (index.identities >= 0).sum() == inside
            rows = sorted(range(36), key=lambda row, index=index: Path(index.records[row].id).name)
            asked = index.latents(torch.tensor(rows)) + 0.3 * smooth(36, seed=5)
            for kind, one in (
                ("whole", index),
                ("without", IndexWithout(index, [index.records[rows[0]].id])),
            ):
                found = [one.score for one in score_latents(one, asked, "sd")]
                scores[layout, least, kind] = torch.tensor(found)
    for kind in ("whole", "without"):
        assert torch.equal(scores["all", likely, kind], scores["all", 0.0, kind])
        gained = {
            layout: scores[layout, likely, kind] - scores[layout, 0.0, kind] for layout in ("none", "some")
        }
        assert all(one.abs().max() > 1e-3 for one in gained.values())
        assert (scores["some", likely, kind] - scores["none", likely, kind]).abs().max() > 1e-3


def test_candidates_that_are_taken_together_bring_all_of_their_number_and_the_first_known_one_is_believed():
    numbers = torch.tensor([[-1, 5, 5, 7, -2, 9]])
    for places, found, expected in (
        ([0, 1, 3, 4], [True, True, True, False], [5, 5, 5, 7, -2, 9]),
        ([0, 4, 1, 5], [True, True, False, False], [-1, 5, 5, 7, -1, 9]),
        ([3, 0, 1, 4], [True, False, True, True], [-1, 5, 5, 7, 7, 9]),
        ([0, 1, 3, 4], [False] * 4, numbers[0].tolist()),
    ):
        assert taken_together(numbers, torch.tensor([places]), torch.tensor([found])).tolist() == [expected]


def test_a_head_says_from_which_likeness_on_images_are_of_one_identity():
    network = LCMemHead.from_pretrained("lcmem-reid")
    given = smooth(1, side=network.grid)
    assert Query.of(network, given, "sd", "descriptors").same_identity == network.config.same_identity > 0
    assert Query.of(head_with("descriptors"), smooth(1), "sd", "descriptors").same_identity == 0
    changed = LCMemHead.from_pretrained("lcmem-reid", same_identity=0.0)
    assert changed.fingerprint != network.fingerprint and "same_identity" not in changed._described_config()
    recipe = TrainingConfig(match_dim=32, match_width=128)
    assert (
        with_descriptors(network, ("sd",), recipe).config.same_identity == 0
    )  # whose may be another likeness


def test_embeddings_count_in_the_likeness_as_much_as_the_head_says():
    network, stored = head_with("descriptors"), smooth(30, seed=1)
    shown = smooth(2, seed=2)
    parts = describe_parts(network, stored, "sd", "descriptors").expand(2, -1, -1, -1, -1)
    draw = torch.Generator().manual_seed(0)
    embedding = torch.nn.functional.normalize(torch.randn(2, 30, 8, generator=draw), dim=2)
    asked = torch.nn.functional.normalize(torch.randn(2, 2, 8, generator=draw), dim=2)
    plain = Query(
        asked, describe_parts(network, shown.expand(2, -1, -1, -1, -1), "sd", "descriptors"), "descriptors"
    )
    found = compare(plain, Candidates(embedding, parts))
    both = torch.einsum("pbd,bkd->pbk", asked, embedding)
    each = torch.stack([alike_under_warps(pose, parts) for pose in plain.parts])
    for share in (0.0, 0.3, 1.0):
        of = compare(replace(plain, embedding_weight=share), Candidates(embedding, parts))
        assert torch.equal(of.cosine, found.cosine) and torch.equal(of.parts, found.parts)
        alike = (share * both + (1 - share) * each).amax(0)
        places = alike.argsort(dim=1, descending=True)
        assert (of.score.gather(1, places).diff(dim=1) <= 1e-6).all(), share
        assert torch.equal(of.score, found.score) == (share == 0)
    same = Candidates(
        asked[0, :, None].repeat(1, 30, 1), parts
    )  # all of one embedding: what lies where decides
    weighed = replace(plain, embedding=asked[:1].expand(2, -1, -1), embedding_weight=0.3)
    assert torch.equal(compare(weighed, same).score.argmax(1), each.amax(0).argmax(1))
    given = LCMemHead.from_pretrained("lcmem-reid", embedding_weight=0.25)
    assert Query.of(given, smooth(1, side=given.grid), "sd", "descriptors").embedding_weight == 0.25
    assert with_descriptors(given, ("sd",), TrainingConfig(match_width=128)).config.embedding_weight == 0


def test_the_statistic_rises_with_either_similarity():
    low, high = torch.full((1, SHORTLIST), 0.3), torch.full((1, SHORTLIST), 0.3)
    high[0, 0] = 0.6
    assert (
        combine(low, high)[0, 0] > combine(low, low)[0, 0]
        and combine(high, low)[0, 0] > combine(low, low)[0, 0]
    )
    assert combine(high, None)[0, 0] == stand_out(high, torch.tensor([[0.3]]))[0, 0]


def test_repetitions_are_no_background():
    similarity = torch.full((1, SHORTLIST), 0.3)
    similarity[0, :20] = 0.75  # a copy of an image that stands in the index twenty times
    repeats = torch.zeros(1, SHORTLIST, dtype=torch.bool)
    repeats[0, 1:20] = True
    alone = torch.full((1, SHORTLIST), 0.3)
    alone[0, 0] = 0.75
    torch.testing.assert_close(
        combine(similarity, similarity, repeats).max(), combine(alone, alone).max(), rtol=0, atol=1e-6
    )
    assert combine(similarity, similarity).max() < 0.7 * combine(alone, alone).max()
    everything = torch.ones(1, SHORTLIST, dtype=torch.bool)
    assert relative_similarity(similarity, everything).max() == 0.75
    assert combine(similarity, similarity, everything).max() == pytest.approx(0.75)


def test_repetitions_in_an_index_are_recognised(tmp_path):
    for name in ("a", "b", "c"):  # each picture three times
        pictures(tmp_path / "train" / name, range(20))
    index = build(tmp_path)
    rows = torch.tensor([[0, 20, 5, 40, 25, 7]])
    alike = index.embeddings(rows[0]) @ index.embeddings(rows[0]).T > SAME_IMAGE
    assert alike[0, 1] and alike[0, 3] and alike[2, 4]
    expected = [any(bool(alike[i, j]) for j in range(i)) for i in range(6)]
    assert (
        repeats(index.embeddings(rows)).tolist() == [expected] and expected[1] and expected[3] and expected[4]
    )


def test_repetitions_are_told_apart_whatever_the_default_device(tmp_path):
    for name in ("a", "b", "c"):  # each picture three times
        pictures(tmp_path / "train" / name, range(20))
    index = build(tmp_path)
    near = index.propose(index.embeddings(torch.arange(2)), len(index))
    expected = _one_of_each_picture(index, near, SHORTLIST)
    assert not repeats(index.embeddings(expected[:, :20])).any()
    with torch.device("meta"):
        assert torch.equal(_one_of_each_picture(index, near, SHORTLIST), expected)


@KINDS
@pytest.mark.parametrize("keep_latents", [True, False])
def test_an_images_own_copy_is_found_first(tmp_path, monkeypatch, keep_latents, kind):
    head_with(kind).add_probes("sd", tiny_vae())
    monkeypatch.setattr("tests.index.material.head", lambda: head_with(kind))
    index = build(tmp_path, images=60, keep_latents=keep_latents)
    assert compared_by(index, "sd") == (kind if keep_latents else None)
    source = pictures(tmp_path / "train", range(60))
    encoder = saved_encoder(tmp_path)
    latents = encode_images(source, range(12), encoder, 32).latents
    scored = score_latents(index, latents, "sd")
    assert [one.neighbours[0].id for one in scored] == [record.id for record in source.records[:12]]
    assert all(0.99 < one.score <= 1 for one in scored)
    assert all(one.score == one.neighbours[0].score for one in scored)
    for one in scored:
        scores = [near.score for near in one.neighbours]
        assert scores == sorted(scores, reverse=True) and SHORTLIST <= len(scores) <= 2 * SHORTLIST
        assert len({near.id for near in one.neighbours}) == len(scores)
        assert (one.neighbours[0].latent_similarity is not None) == keep_latents


def test_scores_depend_neither_on_batch_nor_on_scale_and_shift(tmp_path):
    index, latents = build(tmp_path), smooth(5, seed=3)
    whole = [one.score for one in score_latents(index, latents, "sd")]
    single = [score_latents(index, latent[None], "sd")[0].score for latent in latents]
    backwards = [one.score for one in score_latents(index, latents.flip(0), "sd")][::-1]
    scale, shift = torch.tensor([0.18, 3.0, 1.0, 9.0]), torch.tensor([5.0, -2.0, 0.0, 0.1])
    moved = latents * scale[:, None, None] + shift[:, None, None]
    scaled = [one.score for one in score_latents(index, moved, "sd")]
    for other in (single, backwards, scaled):
        np.testing.assert_allclose(other, whole, atol=1e-4)


def test_scores_do_not_depend_on_what_was_judged_before(tmp_path, monkeypatch):
    pictures(tmp_path / "train", range(40))
    asked = build(tmp_path, images=40).latents(torch.arange(40)) + 0.3 * smooth(40, seed=5)
    before, fresh = (MemorizationIndex.load(tmp_path / "index") for _ in range(2))
    for row in range(30):
        score_latents(before, asked[row : row + 1], "sd")
    described = []

    def counted(index, kind, rows):
        described.append(rows)
        return make(index, kind, rows)

    make = verification._described
    monkeypatch.setattr(verification, "_described", counted)
    assert score_latents(before, asked[30:], "sd") == score_latents(fresh, asked[30:], "sd")
    assert sum(map(len, described)) == 40, "the fresh index alone describes its rows, each once"


def test_of_no_samples_nothing_is_said(tmp_path):
    pictures(tmp_path / "train", range(4))
    index = build(tmp_path, images=4)
    assert score_latents(index, index.latents(torch.arange(0)), "sd") == []


@pytest.mark.parametrize("cells", [1, 12])
@pytest.mark.parametrize("value", [100.0, -1e4, 1e12])
def test_a_copy_is_found_whatever_a_few_of_its_cells_hold(tmp_path, value, cells):
    index = build(tmp_path)
    copies = index.latents(torch.arange(3)) + 0.02 * smooth(3, seed=1)
    expected = score_latents(index, copies, "sd")
    hot = copies.clone()
    for row in (0, 2):
        hot[row].view(4, -1)[:, 40 : 40 + cells] = value
    found = score_latents(index, hot, "sd")
    assert found[1] == expected[1]
    for row in (0, 2):
        assert found[row].neighbours[0].id == expected[row].neighbours[0].id
        assert found[row].score == pytest.approx(expected[row].score, abs=0.1)


def test_cells_are_outlying_by_what_most_others_are_like():
    latents = smooth(6, seed=4)
    latents[1, 2, 3, 4] = 80
    latents[2, 0] = 1 + 1e-4 * latents[2, 0]  # almost constant
    latents[3, 0] = 0
    latents[3, 0, :5, :5] = 9  # 25 of 256 cells, of a channel that is constant elsewhere
    latents[4, 1, 8:] *= 1e-5  # half of it
    latents[5, :, 0, :12] = 3e8
    calm, rows = without_outliers(latents)
    assert rows == [1, 5]
    assert calm[1, 2, 3, 4] == latents[1, 2].flatten().sort().values[128]
    changed = (calm != latents).nonzero()[:, 0].tolist()
    assert changed == [1] + [5] * 48
    assert without_outliers(latents.half())[0].dtype == torch.float32


def test_what_cannot_be_judged_raises(tmp_path):
    index = build(tmp_path)
    for bad, message in ((float("nan"), "NaN or infinity"), (float("inf"), "NaN or infinity")):
        latents = smooth(2)
        latents[1, 0, 0, 0] = bad
        with pytest.raises(FilterFailedError, match=message):
            score_latents(index, latents, "sd")
    with pytest.raises(FilterFailedError, match="constant"):
        score_latents(index, torch.zeros(1, 4, 16, 16), "sd")
    with pytest.raises(LatentSpaceError, match="batch, 4, height, width"):
        score_latents(index, smooth(1, channels=8), "sd")
    with pytest.raises(LatentSpaceError, match="no stem for latent space 'flux'"):
        score_latents(index, smooth(1), "flux")


def test_parts_find_each_other_wherever_they_lie():
    torch.manual_seed(0)
    tokens = torch.nn.functional.normalize(torch.randn(2, 9, 8), dim=-1)
    shuffled = tokens[:, torch.randperm(9)]
    found = local_similarity(tokens, torch.stack([shuffled, tokens.flip(0)], 1))
    torch.testing.assert_close(found[:, 0], torch.ones(2))
    assert found[:, 1].max() < 0.9
    torch.testing.assert_close(
        local_similarity(tokens, tokens[None]), torch.stack([found[0], found[1].flip(0)])
    )


def test_parts_without_weight_do_not_count():
    torch.manual_seed(0)
    query, stored = torch.nn.functional.normalize(torch.randn(2, 1, 9, 8), dim=-1)
    stored[0, :5] = query[0, :5]
    whole = local_similarity(query, stored[None])
    weight = torch.cat([torch.ones(5), torch.full((4,), 1e-4)])[:, None]
    assert local_similarity(query * weight, (stored * weight)[None]) > 0.999 > whole


def test_pictures_that_stand_in_an_index_many_times_change_no_strangers_score(tmp_path):
    knowing = LCMemHead.from_pretrained("lcmem-small")
    knowing.add_probes("sd", tiny_vae())
    encoder, found = saved_encoder(tmp_path), []
    unseen = pictures(tmp_path / "unseen", range(500, 504))
    latents = encode_images(unseen, range(4), encoder, RESOLUTION).latents
    for times in (1, 40):
        folder = tmp_path / f"train{times}"
        folder.mkdir()
        for seed in range(20):  # no more than each way of asking has candidates
            for copy in range(times if seed < 3 else 1):
                picture(seed).save(folder / f"{seed:03d}-{copy}.png")
        index = MemorizationIndex.build(
            open_images(folder),
            encoder,
            knowing,
            tmp_path / f"{times}",
            resolution=RESOLUTION,
            progress=False,
        )
        found.append([scored.score for scored in score_latents(index, latents, "sd")])
        copies = score_latents(index, index.latents(torch.arange(3)), "sd")
        assert [scored.score for scored in copies] == pytest.approx([1, 1, 1], abs=1e-3)
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_a_head_to_which_all_is_one_picture_is_shown_the_nearest(tmp_path, monkeypatch):
    index = build(tmp_path, images=60)
    query = index.embeddings(torch.arange(3))
    usual = shortlisted(index, query[None])
    monkeypatch.setattr(shortlist, "SAME_IMAGE", -1.0)
    monkeypatch.setattr(
        shortlist, "repeats", lambda stored: torch.arange(stored.shape[1]).expand(len(stored), -1) > 0
    )
    assert (shortlisted(index, query[None]) == usual).all()


def test_middles_are_what_lies_within_the_margins():
    side = torch.arange(16, dtype=torch.float32)
    canonical = (side[:, None] + 100 * side).expand(2, 4, 16, 16)
    for margin, middle in zip(MARGINS, middles(canonical), strict=True):
        cut = 16 * margin
        places = (cut + (side + 0.5) * (1 - 2 * margin) - 0.5).clamp(cut, 15 - cut)
        torch.testing.assert_close(middle, (places[:, None] + 100 * places).expand(2, 4, 16, 16))
    assert middles(torch.zeros(3, 4, 8, 8)).shape == (len(MARGINS), 3, 4, 8, 8)


def test_each_way_of_asking_proposes_as_many(tmp_path):
    index = build(tmp_path, images=60)
    asking = index.embeddings(torch.tensor([[7, 20], [8, 21], [9, 22], [10, 23]]))
    for ways, count in ((4, 15), (2, 25)):
        assert candidates_of_each(ways) == count
        rows = shortlisted(index, asking[:ways])
        assert torch.equal(rows, torch.cat([index.search(way, count).rows for way in asking[:ways]], 1))
        assert rows[:, ::count].tolist() == [[7, 8, 9, 10][:ways], [20, 21, 22, 23][:ways]]


def test_what_stands_out_as_it_lies_decides_where_nothing_else_does():
    latents = smooth(20)
    formed = half_formed(latents[:4], generator_for(0, "half-formed"))
    samples = canonical(torch.cat([formed[:2], formed[2:].flip(-1)]), 16)  # mirrored, too
    network = head_with("descriptors")
    embedding = network.embed(latents, "sd").expand(4, -1, -1)
    parts = network.descriptors(latents, "sd").expand(4, *[-1] * 4)
    stored = latents.expand(4, *[-1] * 4)
    query = Query.of(network, samples, "sd", "descriptors")
    elsewhere = compare(query, Candidates(embedding, parts)).score
    both = compare(query, Candidates(embedding, parts, latents=stored)).score
    assert (both >= elsewhere).all()
    own = torch.arange(4)
    alike = as_they_lie(samples, stored)
    background = background_of(alike, None, BACKGROUND_UNDER_WARPS)
    in_place = stand_out(alike, background, None, RUNNER_UP_UNDER_WARPS)
    torch.testing.assert_close(both, torch.maximum(elsewhere, in_place), rtol=0, atol=1e-5)
    assert (both[own, own] > elsewhere[own, own] + 0.1).all() and (both.argmax(1) == own).all()
    for some, changes in ((5, False), (6, True)):  # fewer are nothing that it could stand out from
        few = Candidates(embedding[:, :some], parts[:, :some], latents=stored[:, :some])
        alone = Candidates(embedding[:, :some], parts[:, :some])
        assert torch.equal(compare(query, few).score, compare(query, alone).score) != changes


def test_whose_outlines_are_alike_is_proposed_too(tmp_path):
    index = build(tmp_path, images=60)
    asking = index.embeddings(torch.tensor([[7, 20], [8, 21]]))
    lying = torch.tensor([44, 55])
    samples = index.latents(lying)
    samples[1] = samples[1].flip(-1)
    rows = shortlisted(index, asking, samples)
    count = candidates_of_each(3)
    assert rows.shape == (2, 3 * count) and rows[:, 2 * count].tolist() == lying.tolist()
    assert torch.equal(rows[:, : 2 * count], torch.cat([index.search(way, count).rows for way in asking], 1))
    stored = outlines(index.latents(torch.arange(60)))
    for row, sample in enumerate(samples):
        poses = outlines(torch.stack([sample, sample.flip(-1)]))
        alike = (poses @ stored.T).amax(0)
        torch.testing.assert_close(
            alike[rows[row, 2 * count :]], alike.topk(count).values, rtol=0, atol=1e-3
        )  # which the index keeps in half precision


def test_whose_embedding_is_far_is_proposed_by_its_outlines(tmp_path, monkeypatch):
    index = build(tmp_path, images=60)
    monkeypatch.setattr(shortlist, "DEEPEST", 30)
    asking = index.embeddings(torch.tensor([[7]]))
    near = index.search(asking[0], 30).rows[0].tolist()
    far = next(row for row in range(60) if row not in near)
    assert far not in shortlisted(index, asking)
    assert far in shortlisted(index, asking, index.latents(torch.tensor([far])))


@pytest.mark.parametrize("kind", LAID_OVER)
def test_whoever_searches_asks_by_outlines_as_the_filter_does(tmp_path, monkeypatch, kind):
    knowing = head_with(kind)
    knowing.add_probes("sd", tiny_vae())
    monkeypatch.setattr("tests.index.material.head", lambda: knowing)
    monkeypatch.setattr(shortlist, "ALTOGETHER", 9)  # three of each way
    index = build(tmp_path, images=60)
    stored = index.latents(torch.arange(60))
    samples = canonical(half_formed(stored[:6], generator_for(0, "half-formed")), 16)
    expected = torch.tensor([one.score for one in score_latents(index, samples, "sd")])

    def found_by(name: str) -> torch.Tensor:
        baseline = make_baseline(name, head=index.head)
        return Searcher(baseline, baseline.embed(stored)).search(baseline.embed(samples), 1).similarity[:, 0]

    assert (expected > found_by("lcmem_not_in_place") + 0.05).sum() > 3
    torch.testing.assert_close(found_by("lcmem"), expected, rtol=0, atol=2e-3)  # the index keeps float16
    enrolled = store(index.head, stored, "sd", kind, torch.device("cpu"))
    search = _Search(index.head, "sd", kind, enrolled, torch.device("cpu"), in_place=True)
    torch.testing.assert_close(search(samples)[0].amax(1), expected, rtol=0, atol=2e-3)
    for own, sample in enumerate(samples):  # a set of all training images and it
        links = _alike(index, "sd", -1.0, torch.cat([stored, sample[None]]))
        found = {other: score for row, other, score in links if row == 60}
        assert max(found, key=found.__getitem__) == own
        assert found[own] == pytest.approx(float(expected[own]), abs=0.05)  # among one or two more


def test_what_is_found_as_it_is_and_mirrored_counts_once(tmp_path):
    index = build(tmp_path, images=60)
    latents = index.latents(torch.tensor([3, 4]))
    even = latents + latents.flip(-1)  # both poses find the same
    in_place = InPlace.of(even, functools.partial(index.propose, by="outlines"), index.outlines)
    for k in (5, 60, 100):
        assert [len(set(row)) for row in in_place.propose(k).tolist()] == [min(k, 60)] * 2


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_an_embedding_that_is_not_finite_is_no_likeness(tmp_path, bad):
    index = build(tmp_path, images=60)
    index._keys.stored("embeddings")[3, 0] = bad
    with pytest.raises(CorruptArtifactError, match="holds an embedding that is not finite"):
        score_latents(index, smooth(2), "sd")


def test_a_border_does_not_hide_a_copy_from_the_shortlist(tmp_path, monkeypatch):
    knowing = LCMemHead.from_pretrained("lcmem-small", middles=True)
    knowing.add_probes("sd", tiny_vae())
    monkeypatch.setattr("tests.index.material.head", lambda: knowing)
    index = build(tmp_path, images=60)
    rows = torch.arange(60)
    bordered = torch.full((60, 4, 16, 16), -2.0)
    bordered[..., 2:-2, 2:-2] = index.latents(rows)[..., 2:-2, 2:-2]
    monkeypatch.setattr(shortlist, "SHORTLIST", 1)
    query = Query.of(knowing, bordered, "sd", compared_by(index, "sd"))
    found = [
        int((shortlisted(index, asking) == rows[:, None]).any(1).sum())
        for asking in (query.embedding, query.asking)
    ]
    assert found[0] < 30 and found[1] > found[0] + 15, found


def test_only_heads_that_are_told_to_ask_by_middles_do(tmp_path):
    plain, told = (LCMemHead.from_pretrained("lcmem-small", middles=asked) for asked in (False, True))
    assert plain.fingerprint == LCMemHead.from_pretrained("lcmem-small").fingerprint != told.fingerprint
    for kind in ("descriptors", "tokens", None):
        queries = [Query.of(network, smooth(3, side=16), "sd", kind) for network in (plain, told)]
        assert [len(query.asking) for query in queries] == [2, 4 if kind else 2]
        torch.testing.assert_close(queries[1].embedding, queries[0].embedding)
        assert all(torch.equal(one.of_rows(slice(1, 3)).asking, one.asking[:, 1:3]) for one in queries)
    told.save_pretrained(tmp_path)
    assert LCMemHead.from_pretrained(tmp_path).config.middles
