"""Parts that several families share: text encoders with a tokenizer made in code, autoencoders, schedulers."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from tests.tiny import RESOLUTION

PROMPTS = ["a cat", "a dog"]
WIDTH = 16
"""Width of every text encoder."""

SIZE = {"height": RESOLUTION, "width": RESOLUTION}

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


@cache
def tokenizer() -> Any:
    """One token a word; begins and ends a text, knows a chat template, and takes 16 tokens."""
    words = [*_SPECIAL, "a", "cat", "dog", "blurred"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=16,
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


def clip(projection: bool = False, seed: int = 0) -> Any:
    """A CLIP text encoder of one layer; with ``projection``, one that pools its text."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=32,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def t5(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer()), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0
    )
    return T5EncoderModel(config).eval()


def gemma(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = Gemma2Config(
        vocab_size=len(tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        attn_implementation="eager",
    )
    return Gemma2Model(config).eval()


def embeds(rows: int = 2, tokens: int = 7, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    """Random text embeddings (rows, tokens, width)."""
    return torch.randn(rows, tokens, width, generator=torch.Generator().manual_seed(seed))


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts() -> dict[str, Any]:
    """Two prompts, at the resolution of every test."""
    return {"prompt": list(PROMPTS), **SIZE}


def negative_prompts() -> dict[str, Any]:
    return {**prompts(), "negative_prompt": ["blurred", "a"]}
