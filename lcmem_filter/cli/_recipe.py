"""Options of ``lcmem-filter train`` that are entries of a recipe, with its defaults."""

from __future__ import annotations

from typing import Any

RECIPE: dict[str, dict[str, Any]] = {
    "size": {
        "choices": ["tiny", "small", "small32", "resnet", "micro"],
        "help": "size of the head: small (1.7 million parameters) is for CPUs, resnet (2.8) looks at every cell, micro "
        "(0.2) is for tests; small32 sees latents at 32x32, not 16x16, and so does tiny, the paper's (28): these embed "
        "no index of a head that ships anew (default: that of --initial, or else small)",
    },
    "pooling": {
        "choices": ["mean", "gem", "attention"],
        "help": "how the head makes one vector of its cells (default: mean)",
    },
    "loss": {
        "choices": ["nt-xent", "verification"],
        "help": "verification is the paper's 0.8 BCE and 0.2 NT-Xent (default: nt-xent)",
    },
    "temperature": {"type": float, "help": "of NT-Xent (default: 0.07)"},
    "margin": {
        "type": float,
        "help": "by which NT-Xent takes a partner for less alike than it is; 0 for none (default: 0)",
    },
    "spread": {"type": float, "help": "weight of the term that pushes strangers apart (default: 0.1)"},
    "resolution": {
        "type": int,
        "help": "side in pixels that images are squashed to before they are encoded (default: 128)",
    },
    "reference_resolution": {
        "type": int,
        "help": "with --add-space: that side for --reference-vae, where it differs",
    },
    "further_resolutions": {
        "type": int,
        "nargs": "+",
        "metavar": "PIXELS",
        "help": "sides that sets whose first image is at least so large are encoded at too",
    },
    "steps": {
        "type": int,
        "help": "optimiser steps (default: 4000; with --add-space and --add-halving 1500)",
    },
    "batch_pairs": {
        "type": int,
        "help": "pairs of one optimiser step, all processes together (default: 128)",
    },
    "learning_rate": {
        "type": float,
        "help": "peak of the cosine decay (default: 0.001; with --add-space and --add-halving 0.002)",
    },
    "image_views": {
        "type": int,
        "help": "augmented views of each image that are encoded beside the clean one (default: 1)",
    },
    "mild_views": {
        "type": int,
        "help": "views as a memorising model returns them, from stage 2 on (default: 1)",
    },
    "token_weight": {"type": float, "help": "weight of the loss on tokens; 0 for none (default: 1)"},
    "strong_views": {
        "type": int,
        "help": "strongly augmented views of each image, from stage 2 on (default: 2)",
    },
    "half_formed": {
        "type": float,
        "help": "stage 2: share of copies made to look half-denoised, in [0, 1] (default: 0.3)",
    },
    "hard_negatives": {
        "type": float,
        "help": "share of stage 2's groups that are neighbours of one image (default: 0.5)",
    },
    "elastic": {"type": float, "help": "share of side b that is warped elastically, in [0, 1] (default: 0)"},
    "adversarial": {
        "type": float,
        "help": "size to which copies are moved against the head, so that it is harder to deceive; 0 for none "
        "(default: 0)",
    },
    "visit_views": {
        "type": int,
        "help": "views of each image as another visit might have given it: window, gamma, warp, borders (default: 0)",
    },
    "fresh_views": {
        "action": "store_true",
        "help": "draw views anew for every batch, augmented and encoded on the device that trains, a GPU best, in "
        "place of cached ones; the numbers of views are then weights",
    },
    "device_views": {
        "action": "store_true",
        "help": "draw the views of each image once, before training, augmented and encoded on the device that trains, "
        "where they stay; faster than --fresh-views",
    },
    "keep_spaces": {
        "action": "store_true",
        "help": "stages 1 and 2: train the trunk of --initial alone, so that all its latent spaces, descriptors and "
        "halving networks are kept",
    },
    "stage2_steps": {"type": int, "help": "optimiser steps of stage 2 (default: 1500)"},
    "stage2_learning_rate": {"type": float, "help": "peak of stage 2 (default: 0.0003)"},
    "stage2_same_image": {
        "type": float,
        "help": "stage 2: share of pairs that are two views of one image although its identity has another, in [0, 1] "
        "(default: 0.7)",
    },
    "upside_down_views": {
        "type": int,
        "help": "stage 3: strongly augmented views of each image upside down (default: 1)",
    },
    "stage3_steps": {"type": int, "help": "optimiser steps of stage 3 (default: 2400)"},
    "stage3_learning_rate": {"type": float, "help": "peak of stage 3 (default: 0.001)"},
    "stage3_batch_pairs": {"type": int, "help": "pairs of one step of stage 3 (default: 72)"},
    "stage3_same_image": {
        "type": float,
        "help": "stage 3: share of pairs that are two views of one image although its identity has another, in [0, 1] "
        "(default: 0.6)",
    },
    "stage3_half_formed": {
        "type": float,
        "help": "stage 3: share of copies made to look half-denoised, in [0, 1] (default: 0.15)",
    },
    "match_dim": {"type": int, "help": "length of the descriptors that stage 3 trains (default: 32)"},
    "match_width": {
        "type": int,
        "help": "width of the branch that makes them: a multiple of that of --initial widens it, any other "
        "draws descriptors anew; 0 for its width, or that of the trunk's first stage (default: 0)",
    },
    "deformed": {
        "action": "store_true",
        "help": "stage 3: pictures are deformed when they are laid over each other, and by the head that comes of it",
    },
    "same_labels": {
        "type": float,
        "help": "share of groups of identities that have labels in common (a column `labels`), so that a patient is "
        "told from others with the same disease (default: 0)",
    },
    "keep_initial": {
        "type": float,
        "help": "how far the best head's weights go back towards those of --initial, 0 to 1 (default: 0)",
    },
    "gradient_accumulation": {
        "type": int,
        "help": "batches that one optimiser step is divided into (default: 1)",
    },
    "mixed_precision": {
        "choices": ["no", "fp16", "bf16"],
        "help": "of the trunk while training; of a baseline no or bf16 (default: no)",
    },
    "validation_fraction": {
        "type": float,
        "help": "share of identities held out where no validation data is named (default: 0.1)",
    },
    "identity_share": {
        "type": float,
        "help": "share of the other identities that is trained on, in (0, 1] (default: 1)",
    },
    "evaluate_every": {"type": int, "help": "steps between validations and checkpoints (default: 250)"},
    "patience": {
        "type": int,
        "help": "validations without improvement after which training stops (default: 6)",
    },
    "seed": {
        "type": int,
        "help": "of everything that is drawn, but for cached views, which runs share (default: 0)",
    },
}
