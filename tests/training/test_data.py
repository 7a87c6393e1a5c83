"""Splits and pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from lcmem_filter.errors import DataError
from lcmem_filter.training.data import LatentSet, PairSampler
from lcmem_filter.training.split import split_by_identity, without_identities


def latent_set(*sets: list[str], views: tuple[str, ...] = ("clean", "light")) -> LatentSet:
    """One image for each name, which is its identity."""
    identities = np.array([name for members in sets for name in members], dtype=object)
    return LatentSet(
        {
            "sd": torch.arange(len(identities))[:, None, None, None, None]
            .expand(-1, len(views), 1, 1, 1)
            .half()
        },
        views,
        identities,
        np.repeat(np.arange(len(sets)), [len(members) for members in sets]),
        tuple(f"set{i}" for i in range(len(sets))),
    )


DATA = latent_set(["a", "a", "b", "c", "d", "e"], [f"p{i // 2}" for i in range(40)], ["a", *"qrstuvwxyz"])


def sampler(data: LatentSet = DATA, pairs: int = 8, same_image: float = 0.3, seed: int = 0) -> PairSampler:
    return PairSampler(data, pairs=pairs, sets_per_batch=2, same_image=same_image, seed=seed)


def test_pairs_are_of_one_identity_and_batches_of_many() -> None:
    for step in range(20):
        pairs = sampler().draw(step)
        assert (DATA.identities[pairs.a] == DATA.identities[pairs.b]).all()
        assert len(set(pairs.identities)) == len(pairs.a) == 8
        assert len(set(DATA.sets[pairs.a])) <= 2


def test_what_is_drawn_depends_on_the_step_and_seed_alone() -> None:
    one, other = sampler(), sampler()
    other.draw(0)
    for field in ("a", "b", "view_a", "view_b", "identities"):
        assert (getattr(one.draw(7), field) == getattr(other.draw(7), field)).all()
    assert (one.draw(7).a != one.draw(8).a).any()
    assert (one.draw(7).a != sampler(seed=1).draw(7).a).any()


def test_partners() -> None:
    never, always = sampler(same_image=0.0), sampler(same_image=1.0)
    alone = {name for name, count in Counter(DATA.identities).items() if count == 1}
    for step in range(10):
        pairs = never.draw(step)
        for a, b in zip(pairs.a, pairs.b, strict=True):
            assert (a == b) == (DATA.identities[a] in alone)
        pairs = always.draw(step)
        assert (pairs.a == pairs.b).all()


def test_small_sets_are_not_drowned_and_partnered_identities_come_twice_as_often() -> None:
    data = latent_set(
        [f"s{i}" for i in range(100)], [f"l{i}" for i in range(1600)], [f"m{i // 2}" for i in range(100)]
    )
    one = sampler(data, pairs=10)
    drawn = np.concatenate([one.draw(step).a for step in range(400)])
    share = np.bincount(data.sets[drawn], minlength=3) / len(drawn)
    # identities / sqrt(images): 100/10, 1600/40, 2 * 50/10
    np.testing.assert_allclose(share, np.array([10, 40, 10]) / 60, atol=0.05)


def test_fewer_identities_than_pairs_still_fill_the_batch() -> None:
    pairs = sampler(latent_set(["a", "a", "b"]), pairs=9).draw(0)
    assert len(pairs.a) == 9
    assert sorted(Counter(pairs.identities).values()) in ([4, 5],)


def test_one_identity_cannot_be_trained_on() -> None:
    with pytest.raises(DataError, match="at least two identities, got 1"):
        sampler(latent_set(["a", "a"]))


def test_split_is_by_identity() -> None:
    train, held = split_by_identity(DATA, 0.3, seed=0)
    assert not set(train.identities) & set(held.identities)
    assert len(train) + len(held) == len(DATA)
    assert len(set(held.identities)) == round(0.3 * len(set(DATA.identities)))
    assert list(split_by_identity(DATA, 0.3, seed=0)[1].identities) == list(held.identities)
    assert list(split_by_identity(DATA, 0.3, seed=1)[1].identities) != list(held.identities)
    rows = held.latents["sd"][:, 0, 0, 0, 0].long().numpy()
    assert (DATA.identities[rows] == held.identities).all()


def test_too_few_identities_to_split() -> None:
    with pytest.raises(DataError, match="got 2"):
        split_by_identity(latent_set(["a", "b"]), 0.3, seed=0)


def test_validation_images_of_trained_identities_are_left_out() -> None:
    held = without_identities(latent_set(["a", "new", "q"]), set(DATA.identities))
    assert list(held.identities) == ["new"]


def test_changed_views_stand_on_one_side_in_four_pairs_of_five() -> None:
    data = latent_set([f"p{i}" for i in range(40)], views=("clean", "mild", "strong"))
    sampler = PairSampler(data, pairs=40, sets_per_batch=1, same_image=1.0, seed=0)
    drawn = [sampler.draw(step) for step in range(50)]
    assert all((pairs.view_a == 0).all() for pairs in drawn)
    for view in (1, 2):
        assert 0.35 < np.mean([(pairs.view_b == view).mean() for pairs in drawn]) < 0.45


def test_pairs_of_two_images_are_changed_as_often_as_asked() -> None:
    data = latent_set([f"p{i // 2}" for i in range(80)], views=("clean", "mild", "strong"))
    sampler = PairSampler(data, pairs=40, sets_per_batch=1, same_image=0.5, seed=0, others_changed=0.3)
    drawn = [sampler.draw(step) for step in range(50)]
    changed = np.concatenate([pairs.view_b > 0 for pairs in drawn])
    copies = np.concatenate([pairs.a == pairs.b for pairs in drawn])
    assert 0.4 < copies.mean() < 0.6
    assert 0.75 < changed[copies].mean() < 0.85 and 0.25 < changed[~copies].mean() < 0.35


def test_groups_have_labels_in_common_where_asked() -> None:
    labels = [("ill", "well", "ill|old")[i % 3] for i in range(60)]
    data = replace(latent_set([f"p{i}" for i in range(60)]), labels=np.array(labels, dtype=object))
    together = []
    for share in (0.0, 1.0):
        made = PairSampler(data, pairs=10, sets_per_batch=1, same_image=1.0, seed=0, same_labels=share)
        drawn = [[labels[row] for row in made.draw(step).a] for step in range(30)]
        together.append(np.mean([len(set(batch)) == 1 for batch in drawn]))
        assert all(len(set(made.draw(step).identities)) == 10 for step in range(30))
    assert together == [0.0, 1.0]  # 20 identities have each set of labels, more than a batch holds
    with pytest.raises(DataError, match="needs a column `labels`"):
        PairSampler(DATA, pairs=8, sets_per_batch=2, same_image=0.3, seed=0, same_labels=1.0)


def test_mined_groups_are_neighbours_and_the_rest_is_not() -> None:
    data = latent_set([f"p{i}" for i in range(40)])
    place = torch.linspace(0, 1.5, 40)
    embeddings = torch.stack([place.cos(), place.sin()], 1)  # neighbours in order
    for share, least, most in ((0.0, 0.5, 2.0), (1.0, 0.0, 0.4)):
        sampler = PairSampler(data, pairs=6, sets_per_batch=1, same_image=1.0, seed=0, hard_negatives=share)
        sampler.mine(embeddings)
        drawn = [sampler.draw(step) for step in range(50)]
        assert all(len(set(pairs.identities)) == 6 for pairs in drawn)
        spreads = [float(place[pairs.a].std()) for pairs in drawn]
        assert least < max(spreads) < most
        assert np.array_equal(sampler.draw(3).a, drawn[3].a)
