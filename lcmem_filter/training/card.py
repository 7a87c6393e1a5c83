"""The README.md that lies beside a trained head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..calibration import held_out_needed
from ..head import LCMemHead
from ..report.statistics import rate_of
from .checkpoint import write_text
from .config import OF_STAGES

_TEMPLATE = """---
library_name: lcmem_filter
tags: [memorization, latent-diffusion, copy-detection, re-identification]
---

# {name}

An LCMem head (arXiv 2512.14421): it maps a VAE's latent of an image to an embedding of {dim} numbers, so that
images of one identity, and copies of an image, lie near each other. `lcmem_filter` uses it to keep latent
diffusion pipelines from returning memorised training images.

```python
from lcmem_filter import LCMemHead

head = LCMemHead.from_pretrained("{name}")
embeddings = head.embed(latents, "{space}")  # (batch, {dim}), unit-norm; compare them by cosine
```

{parameters:,} parameters; canonical grid {grid}x{grid}; score: {score}.

## Latent spaces

{spaces}

What is told of a space below was measured with its encoder here. Another encoder of the same space is recognised
by how it encodes a fixed set of probe images; how much it costs was not measured here.
{added}{halved}
## Data

{data}

{terms}{earlier}

## Recipe

{recipe}

## Metrics

Share of queries found at {rate:.3g}% false rejection of unseen identities, by the filter's score
(`verification.compare`). {compared}

{unseen} {strangers} of them set the threshold, in two halves that take turns; the index holds
{index_rows:,} training images and the other half. With exact 95 % intervals, as of independent queries.{few}{chosen}

{metrics}

Threshold: {threshold:.3f}. An unseen identity's nearest neighbour has cosine {median:.3f} in
the median.

## Known misses

- Mild copies here are {mild}; strongly transformed ones, where they stand in the table, are pictures turned to 20
  degrees, cropped to 40 % of their area, mirrored, relit, blurred, and saved as JPEG to quality 10. Other changes
  were not measured. Half-formed copies are latents blurred, mixed with another image's and given coarse noise, as
  a model returns what it only half remembers.
- Where the table's last column is low, an identity is mostly missed when the index holds only other images of
  it: that nothing was found is no proof that a sample is new.
- Encodings at other resolutions are brought to the head's grid; the last stage was trained on those at {resolutions}
  px.
- Kinds of images other than those above were not measured.
"""


def write_card(folder: Path, head: LCMemHead, record: Mapping[str, Any]) -> None:
    """Write ``folder/README.md`` for a head, from its finished run's ``record`` (``training.json``)."""
    best, config = record["best"], record["plan"]["config"]
    text = _TEMPLATE.format(
        name=folder.absolute().name,
        dim=head.embedding_dim,
        space=next(iter(_encoders(record))),
        parameters=sum(p.numel() for name, p in head.named_parameters() if not name.startswith("probes.")),
        grid=head.grid,
        score=head.config.score,
        spaces=_table(
            ("space", "encoder", "class", "SHA-256 of its weights"),
            [
                (space, one["name"], one["class"], one["sha256"][:16])
                for space, one in _encoders(record).items()
            ],
        ),
        added=_added(record.get("added_spaces", {})),
        halved=_halved(record.get("halvings", {})),
        mild="pictures zoomed to 8 %, shifted to 4 %, softened, with noise to 0.03"
        if config.get("stage", 1) > 1 and config.get("mild_views")
        else "latents zoomed to 6 %, shifted to 3 %, with noise to 0.1",
        data=_data(record["data"]),
        terms=f"Terms: {record['terms']}"
        if record["terms"]
        else "Terms of the data: not stated by who trained it.",
        earlier=_earlier(record.get("earlier_data", ())),
        recipe=_recipe(record, head),
        compared=_compared(head),
        unseen="No identity here was trained on."
        if record.get("unseen_before", True)
        else "No identity here was trained on in this run; whether one was before, for the head that it\nwent on from, "
        "is not known.",
        strangers=best["strangers"],
        few=_too_few(best["strangers"], best["false_rejection_rate"]),
        index_rows=best["index_rows"],
        rate=100 * best["false_rejection_rate"],
        chosen=f" They also chose the checkpoint (step {record['best_step']} of {record['step']}), so the\n"
        "figures are slightly optimistic."
        if len(record["history"]) > 1
        else "",
        metrics=_metrics(best),
        threshold=best["threshold"],
        median=best["stranger_median"],
        resolutions=_sides(config, record.get("further_sides", {})),
    )
    write_text(folder / "README.md", text)


def _sides(config: Mapping[str, Any], further: Mapping[Any, Sequence[str]]) -> str:
    """Sides in pixels that the last stage's images were encoded at, further ones with their sets where these are
    known."""
    sets = {int(side): f" ({', '.join(names)})" for side, names in further.items()}
    return " and ".join(
        [
            str(config["resolution"]),
            *(f"{side}{sets.get(side, '')}" for side in config.get("further_resolutions", ())),
        ]
    )


def _recipe(record: Mapping[str, Any], head: LCMemHead) -> str:
    """What the last stage went by, and what it went on from."""
    settings = [*_told(record["plan"], head).items(), ("seconds", round(record["seconds"]))]
    before = f"\n\nWent on from: {record['went_on_from']}" if record.get("went_on_from") else ""
    return _table(("setting", "value"), settings) + before


def _told(plan: Mapping[str, Any], head: LCMemHead) -> dict[str, Any]:
    """The settings that a stage went by; those of further stages stand in the place of its own."""
    config = plan["config"]
    stage = config.get("stage", 1)
    but = {name for name, stages in OF_STAGES.items() if stage not in stages}
    if plan.get("validation"):
        but.add("validation_fraction")
    if not plan.get("initial"):
        but.add("keep_initial")
    if len(plan.get("encoders", ())) == 1:
        but.add("first_space")
    if not head.has_tokens:
        but |= {"token_weight", "token_temperature"}
    return {
        name: value
        for name, value in config.items()
        if name not in but and value is not None and not name.startswith(("stage2_", "stage3_"))
    }


def _encoders(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What each space's latents came from, of those that were added and not trained on since too."""
    spaces, added = record["spaces"], record.get("added_spaces", {})
    return {**spaces, **{name: one["encoder"] for name, one in added.items() if name not in spaces}}


def _too_few(strangers: int, rate: float) -> str:
    needed = held_out_needed(rate)
    if strangers // 2 >= needed:
        return ""
    told = f" A rate of {rate:g} takes {needed} in each half:\n"
    return told + "with fewer, as here, the largest of their scores is the threshold."


def _compared(head: LCMemHead) -> str:
    """How the filter compares two pictures with this head, in a sentence or two."""
    parts = "their tokens, wherever they lie" if head.has_tokens else "their aligned latents"
    if not head.config.match_spaces:
        return f"Pictures are compared by their embeddings and {parts}."
    spaces = ", ".join(head.config.match_spaces)
    how = (
        "cropped, turned, mirrored and deformed"
        if head.config.match_deformed
        else "cropped, turned and mirrored"
    )
    told = (
        f"In the latent spaces {spaces}, pictures are laid over each other, {how} for the best\n"
        f"fit (`matching`); in any other they are compared by their embeddings and {parts}."
    )
    if share := head.config.embedding_weight:
        told += (
            f"\nOf the likeness of pictures laid over each other, {share:g} is the cosine of their embeddings\n"
            "(`embedding_weight`), and the rest what lies where."
        )
    if least := head.config.same_identity:
        told += (
            f"\nWhere the index does not name who is in two training images, and their likeness is {least:g} or more\n"
            "(`same_identity`), they are taken for images of one identity, and neither counts against the other when\n"
            "a sample is compared with both."
        )
    if head.config.middles:
        told += (
            "\nSamples ask an index by their middles too (`middles`), so that a border or a frame around a copy does\n"
            "not hide it."
        )
    return told


def _added(spaces: Mapping[str, Any]) -> str:
    """Spaces that were added with the trunk frozen: with what, and what is found within and across."""
    if not spaces:
        return ""
    lines = [
        "",
        "These were added to the trained head, its trunk frozen (`lcmem-filter train --add-space`). Mean share of the",
        "sets that was found when each was added, by the filter as it was then, for samples of one space in an index",
        "of another; mild copies are moved latents here. Pictures smaller than they are encoded at are upsampled.",
        "",
    ]
    rows = [
        (
            one["encoder"]["name"],
            one["encoder"]["sha256"][:16],
            f"{one['recipe']['resolution']} px",
            between,
            *(
                "" if found[kind]["overall"] is None else f"{found[kind]['overall']:.1%}"
                for kind in ("mild_copies", "same_identity")
            ),
        )
        for space, one in spaces.items()
        for between, found in one["validation"].items()
        if space in between.split(" in ")
    ]
    told = _data_of_parts(spaces)
    if not rows:
        return "\n".join(["", *told]) if told else ""
    header = (
        "encoder",
        "SHA-256 of its weights",
        "encoded at",
        "samples in index",
        "mild copies",
        "another image of the identity",
    )
    return "\n".join([*lines, _table(header, rows), "", *told])


def _data_of_parts(parts: Mapping[str, Any]) -> list[str]:
    """Lines that tell what parts of a head were trained on, by their spaces, and its terms."""
    return [
        f"That of {space} was trained on "
        + ", ".join(f"{name} ({images} images)" for name, (images, _) in one["data"].items())
        + f". Terms of these: {one['terms'] or 'not stated by who trained it.'}\n"
        for space, one in parts.items()
        if "data" in one  # records of before do not say it
    ]


def _halved(spaces: Mapping[str, Any]) -> str:
    """Spaces whose larger latents are halved by a network: how alike the head then finds two sizes of a picture."""
    if not spaces:
        return ""
    lines = [
        "",
        "Latents of twice the grid's side and more are halved, once or several times, by networks that were trained",
        "for it, the head frozen (`lcmem-filter train --add-halving`); those of other spaces are averaged over areas.",
        "Of smaller latents the head makes what it made before they were added, to the last bit.",
        "How alike a picture is to itself at two sizes: mean cosine, over validation images, of what the head makes",
        "of its latents at the larger size, averaged over areas and, second, halved by the network, and at the",
        "smaller:",
        "",
    ]
    rows = [
        (
            space,
            one["encoder"]["name"],
            f"{2 * one['recipe']['resolution']} and {one['recipe']['resolution']} px",
            found.get("images", "not measured since the head was trained on"),
            *(
                f"{found['averaged'][what]:.3f}, {found['halved'][what]:.3f}"
                if what in found.get("halved", ())
                else ""
                for what in ("embeddings", "descriptors")
            ),
        )
        for space, one in spaces.items()
        for found in (one["validation"],)
    ]
    header = ("space", "encoder", "sizes", "images", "embeddings", "descriptors")
    return "\n".join([*lines, _table(header, rows), "", *_data_of_parts(spaces)])


def _data(data: Mapping[str, Any]) -> str:
    sets = sorted({*data["train"], *data["validation"]})
    rows = [(name, *data["train"].get(name, (0, 0)), *data["validation"].get(name, (0, 0))) for name in sets]
    header = ("set", "images", "identities", "validation images", "validation identities")
    told = f"{data['unreadable']} images could not be read."
    if left_out := data.get("left_out"):
        told += (
            f" {left_out} validation images whose picture or person stands in the training set were left out."
        )
    return f"{_table(header, rows)}\n\n{told}"


def _earlier(runs: Sequence[Mapping[str, Any]]) -> str:
    """What the head was trained on before this run, whose terms are this head's too."""
    told = ""
    for run in runs:
        sets = ", ".join(f"{name} ({images} images)" for name, (images, _) in run["data"].items())
        terms = run["terms"] or "not stated by who trained it."
        told += f"\n\nThe head that it went on from was trained on {sets}. Terms of these: {terms}"
    return told


def _metrics(best: Mapping[str, Any]) -> str:
    kinds = {
        "mild_copies": "mild copies",
        "transformed_copies": "strongly transformed copies",
        "half_formed_copies": "half-formed copies",
        "same_identity": "another image of the identity",
    }
    kinds = {kind: name for kind, name in kinds.items() if best[kind]["per_set"]}
    sets = sorted({name for kind in kinds for name in best[kind]["per_set"]})
    rows = []
    for name in sets:
        shares = [best[kind]["per_set"].get(name) for kind in kinds]
        rows.append((name, *("" if one is None else _with_interval(*one) for one in shares)))
    means = [best[kind]["overall"] for kind in kinds]
    rows.append(("mean of sets", *("" if mean is None else f"{mean:.1%}" for mean in means)))
    return _table(("set", *kinds.values()), rows)


def _with_interval(share: float, of: int) -> str:
    rate = rate_of(round(share * of), of)
    return f"{share:.1%} ({rate.low:.1%} to {rate.high:.1%}) of {of}"


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
