"""Train a small text-to-image Stable Diffusion pipeline from scratch, on a CPU.

The demo and the filter benchmark both need a pipeline that has really memorised part of its training set. This is
the one recipe for both: a U-Net and a CLIP text encoder of a few million parameters, trained jointly on cached
latents by v-prediction (Salimans & Ho, 2022) with an exponential moving average of the weights.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .checkpoints import read_checkpoint, write_checkpoint

BatchLoss = Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class SmallRecipe:
    """Text encoder and schedule of a small pipeline."""

    text_width: int = 64
    text_layers: int = 2
    max_tokens: int = 16
    steps: int = 9_000
    batch_size: int = 16
    learning_rate: float = 8e-4
    warmup_steps: int = 200
    ema_decay: float = 0.999
    caption_dropout: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class Recipe(SmallRecipe):
    """Of a small Stable Diffusion pipeline. ``channels`` are the U-Net's widths, widest last."""

    channels: tuple[int, ...] = (64, 96, 128)


def build_tokenizer(captions: Sequence[str], folder: Path, max_tokens: int) -> CLIPTokenizer:
    """Write a CLIP tokenizer whose byte-pair vocabulary is learned from ``captions`` into ``folder`` and load it."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = sorted(set("".join(captions).lower()) - {" "})
    trainer = trainers.BpeTrainer(
        vocab_size=8_000,
        end_of_word_suffix="</w>",
        # each character as a word's last one too: known wherever it stands, and of the same number whenever learned
        special_tokens=["<|startoftext|>", "<|endoftext|>", *(character + "</w>" for character in alphabet)],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([caption.lower() for caption in captions], trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(learned["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in learned["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    loaded = CLIPTokenizer.from_pretrained(str(folder), model_max_length=max_tokens)
    loaded.save_pretrained(folder)
    return loaded


def text_config(recipe: SmallRecipe, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Of the recipe's text encoder."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.text_width,
        intermediate_size=4 * recipe.text_width,
        projection_dim=recipe.text_width,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=4,
        max_position_embeddings=recipe.max_tokens,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_pipeline(recipe: Recipe, vae: Any, captions: Sequence[str], sample_size: int, folder: Path) -> Any:
    """An untrained ``StableDiffusionPipeline`` of the recipe's size around ``vae``."""
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(captions, folder / "tokenizer", recipe.max_tokens)
    text_encoder = CLIPTextModel(text_config(recipe, tokenizer))
    attending = len(recipe.channels) - 1
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=vae.config.latent_channels,
        out_channels=vae.config.latent_channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * attending,
        up_block_types=("CrossAttnUpBlock2D",) * attending + ("UpBlock2D",),
        block_out_channels=recipe.channels,
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=8,
        cross_attention_dim=recipe.text_width,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        rescale_betas_zero_snr=False,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def train_small_pipeline(
    vae: Any,
    latents: torch.Tensor,
    captions: Sequence[str],
    weights: torch.Tensor,
    output: str | os.PathLike[str],
    recipe: Recipe = Recipe(),
    *,
    checkpoint_every: int = 500,
    log: Callable[[str], None] = print,
) -> Any:
    """Train on scaled ``latents`` (N, C, H, W), one caption each, drawn in proportion to ``weights`` (N,).

    Resumes from ``output/checkpoint.pt`` when a run of the same recipe was interrupted. Saves a diffusers pipeline
    folder (float16) and ``training.json`` (recipe, losses, seconds) under ``output`` and returns the pipeline.

    Raises:
        ArtifactError: a run of another recipe was interrupted there.
    """
    output = Path(output)
    pipeline = build_pipeline(recipe, vae, captions, latents.shape[-1], output)
    unet, text_encoder, scheduler = pipeline.unet, pipeline.text_encoder, pipeline.scheduler
    unet.to(memory_format=torch.channels_last)
    tokens = tokenise(pipeline.tokenizer, [*captions, ""], recipe.max_tokens)

    def batch_loss(rows: torch.Tensor, dropped: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        clean = latents[rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(rows),), generator=generator)
        noisy = scheduler.add_noise(clean, noise, timesteps).contiguous(memory_format=torch.channels_last)
        hidden = text_encoder(tokens[torch.where(dropped, len(captions), rows)])[0]
        predicted = unet(noisy, timesteps, encoder_hidden_states=hidden).sample
        return torch.nn.functional.mse_loss(predicted, scheduler.get_velocity(clean, noise, timesteps))

    modules = {"unet": unet, "text_encoder": text_encoder}
    state = train_modules(
        modules, batch_loss, weights, output, recipe, checkpoint_every=checkpoint_every, log=log
    )
    _save(pipeline.to(dtype=torch.float16), output)
    write_report(output, recipe, len(captions), state)
    return pipeline.to(dtype=torch.float32)


def train_modules(
    modules: dict[str, torch.nn.Module],
    batch_loss: BatchLoss,
    weights: torch.Tensor,
    output: Path,
    recipe: SmallRecipe,
    *,
    checkpoint_every: int = 500,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train ``modules`` together on ``batch_loss`` (row numbers (B,), which of them lose their captions (B,), the
    generator), rows drawn in proportion to ``weights`` (N,), and leave them with the averaged weights.

    Resumes from ``output/checkpoint.pt``. Returns the step, the seconds and the losses, each the mean of 100 steps.

    Raises:
        ArtifactError: a run of another recipe was interrupted there.
    """
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_cosine(recipe.warmup_steps, recipe.steps))
    ema = EMAModel(parameters, decay=recipe.ema_decay, use_ema_warmup=True, power=0.75)
    generator = torch.Generator().manual_seed(recipe.seed)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "losses": []}
    checkpoint = output / "checkpoint.pt"
    parts = {**modules, "optimizer": optimizer, "schedule": schedule, "ema": ema}
    if saved := read_checkpoint(checkpoint, recipe):
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        state = saved["state"]
        log(f"resuming at step {state['step']}")

    start, running = time.monotonic() - state["seconds"], []
    for module in modules.values():
        module.train()
    for step in range(state["step"] + 1, recipe.steps + 1):
        rows = torch.multinomial(weights, recipe.batch_size, replacement=True, generator=generator)
        dropped = torch.rand(recipe.batch_size, generator=generator) < recipe.caption_dropout
        loss = batch_loss(rows, dropped, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        ema.step(parameters)
        running.append(loss.item())
        if step % 100 == 0:
            state["losses"].append([step, sum(running) / len(running)])
            log(
                f"step {step}/{recipe.steps} loss {state['losses'][-1][1]:.4f} {time.monotonic() - start:.0f} s"
            )
            running = []
        if step % checkpoint_every == 0 or step == recipe.steps:
            state |= {"step": step, "seconds": time.monotonic() - start}
            write_checkpoint(checkpoint, recipe, parts, generator=generator.get_state(), state=state)
    ema.copy_to(parameters)
    return state


def write_report(output: Path, recipe: SmallRecipe, images: int, state: dict[str, Any]) -> None:
    """Write ``training.json``: the recipe, how many images, and what ``train_modules`` returned."""
    report = {"recipe": asdict(recipe), "images": images, **state}
    (output / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _save(pipeline: Any, output: Path) -> None:
    """Save, the text encoder's weights by the names that they have on the hub: transformers 5 writes them without
    their prefix, and older releases would draw the weights that they do not find. All parts are opened in float32."""
    pipeline.save_pretrained(output)
    config = output / "text_encoder" / "config.json"
    described = json.loads(config.read_text(encoding="utf-8"))
    described["dtype"] = "float32"  # which transformers would open it in otherwise, unlike the other parts
    config.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    file = output / "text_encoder" / "model.safetensors"
    prefix = "text_model."
    weights = {prefix + name.removeprefix(prefix): weight for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def tokenise(tokenizer: Any, captions: Sequence[str], max_tokens: int) -> torch.Tensor:
    """Token ids (N, max_tokens) of the captions, padded or cut off."""
    encoded = tokenizer(
        list(captions), padding="max_length", max_length=max_tokens, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids


def _warm_cosine(warmup: int, total: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * 0.5 * (
            1 + float(torch.cos(torch.tensor(torch.pi * (step - warmup) / (total - warmup))))
        )

    return factor
