"""What a run's record keeps of the runs before it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..head import LCMemHead
from .config import TrainingConfig
from .data import LatentSet
from .shapes import other_trunk


def data_of(
    train: LatentSet, held_out: LatentSet, leave_out: Collection[str], *, split: bool
) -> dict[str, Any]:
    """What a run's record says of its images.

    Args:
        leave_out: Ids of images that are not validated on.
        split: Whether what is validated on is a part of one set; ids of images that are trained on are none then.
    """
    trained = set(train.ids) if split and train.ids is not None else set()
    return {
        "train": train.counts(),
        "validation": held_out.counts(),
        "unreadable": len(held_out.unreadable),
        "left_out": len(set(leave_out) - trained),
    }


def encoders_before(before: Mapping[str, Any], head: LCMemHead) -> dict[str, Any]:
    """What the record ``before`` says of the encoders of spaces that ``head`` still knows."""
    return {space: one for space, one in before.get("spaces", {}).items() if space in head.spaces}


def unseen_before(before: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Whether a head that a run of ``plan`` went on from is known to have seen none of its validation identities.

    Args:
        before: The record of that head; empty where there is none.
    """
    if not before:
        return False
    parts = (one for kind in ("added_spaces", "halvings") for one in before.get(kind, {}).values())
    same = all(_split_alike(one.get("plan"), plan) for one in (before, *parts))
    return same and bool(before.get("unseen_before", True))


def _split_alike(was: Mapping[str, Any] | None, plan: Mapping[str, Any]) -> bool:
    """Whether what ran by the plan ``was`` validated on the images that ``plan`` does."""
    if was is None or any(was.get(name) != plan[name] for name in ("sources", "validation")):
        return False
    drawn_by = () if plan["validation"] else ("seed", "validation_fraction")
    return all(was["config"].get(name) == plan["config"][name] for name in drawn_by)


def went_on_from(
    before: Mapping[str, Any],
    recipe: TrainingConfig,
    initial: LCMemHead | None,
    head: LCMemHead,
    data: Mapping[str, Sequence[int]],
    terms: str,
) -> dict[str, Any]:
    """What a run's record keeps of the one before, ``{}`` if there was none: how that was trained, on what and on which
    terms, the spaces that are left as they were, and the networks that ``head`` has of it.

    Args:
        before: The record of ``initial``, the head that was gone on from; empty where there is none.
        data: Of each set that the run itself trained on, its images and identities.
        terms: Of these.
    """
    trunk = recipe.stage < 3 and initial is not None and other_trunk(initial, recipe.size)
    anew = ", in place of whose trunk another was drawn" if trunk else ""
    if not before:
        return {"went_on_from": f"a head without a record{anew}"} if anew else {}
    config, earlier = before["plan"]["config"], before.get("went_on_from")
    told = f"stage {config['stage']} for {before['step']:,} steps of {config['batch_pairs']} pairs{anew}"
    kept: dict[str, Any] = {"went_on_from": f"{told}; before that: {earlier}" if earlier else told}
    used = [(before["data"]["train"], before["terms"])] if "data" in before else []
    used += [(one["data"], one["terms"]) for one in before.get("earlier_data", ())]
    added = before.get("added_spaces", {})
    if (
        recipe.stage < 3 and not recipe.keep_spaces
    ):  # trained on, a stem that was added is no longer told of as one
        used += [
            (one["data"], one["terms"])
            for space, one in added.items()
            if space in head.spaces and "data" in one
        ]
    others = [(sets, its) for sets, its in used if (_plain(sets), its) != (_plain(data), terms)]
    if others:
        kept["earlier_data"] = [{"data": sets, "terms": its} for sets, its in others]
    if recipe.stage == 3 and added:
        kept["added_spaces"] = added
    elif recipe.keep_spaces:  # of another trunk, what was found says nothing
        kept["added_spaces"] = {space: {**one, "validation": {}} for space, one in added.items()}
    halvings = {
        space: {**one, "validation": _of_parts_that_stay(one["validation"], recipe.stage)}
        for space, one in before.get("halvings", {}).items()
        if space in head.halvings
    }
    return {**kept, "halvings": halvings} if halvings else kept


def _of_parts_that_stay(found: Mapping[str, Any], stage: int) -> dict[str, Any]:
    """What was found of a halving network, less what is of parts of the head that ``stage`` trains."""
    if stage < 3:
        return {}
    return {
        name: {what: value for what, value in one.items() if what == "embeddings"}
        if isinstance(one, Mapping)
        else one
        for name, one in found.items()
    }


def _plain(counts: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Counts of sets as a record has them."""
    return {name: list(of) for name, of in counts.items()}
