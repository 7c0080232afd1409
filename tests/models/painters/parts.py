"""Small random-weight parts that pipelines of several families are made of."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2Model,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

TEXT = 32
"""Width of all text encoders."""

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SPECIAL = (
    "<pad>",
    "<bos>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)


def tokenizer(length: int = 512, side: str = "right") -> PreTrainedTokenizerFast:
    """One token per byte, with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[4:]),
        model_max_length=length,
        padding_side=side,
    )
    wrapped.chat_template = CHAT
    return wrapped


def words() -> int:
    return len(SPECIAL) + 256


def t5(width: int = TEXT) -> T5EncoderModel:
    torch.manual_seed(1)
    config = T5Config(vocab_size=words(), d_model=width, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    return T5EncoderModel(config).eval()


def qwen3(layers: int = 2) -> Qwen3ForCausalLM:
    torch.manual_seed(1)
    return Qwen3ForCausalLM(Qwen3Config(**_decoder(layers))).eval()


def gemma2() -> Gemma2Model:
    torch.manual_seed(1)
    return Gemma2Model(Gemma2Config(**_decoder(2), query_pre_attn_scalar=8, sliding_window=512)).eval()


def qwen25_vl() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(1)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT}
    config = Qwen2_5_VLConfig(
        text_config={**_decoder(2), "rope_parameters": rope},
        vision_config=vision,
        image_token_id=8,
        video_token_id=8,
        vision_start_token_id=6,
        vision_end_token_id=7,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def _decoder(layers: int) -> dict[str, Any]:
    return {
        "vocab_size": words(),
        "hidden_size": TEXT,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def kl(channels: int, **settings: Any) -> AutoencoderKL:
    """Eight pixels per latent, as in the real ones."""
    torch.manual_seed(2)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=64,
        **{"shift_factor": 0.1, **settings},
    ).eval()


def lively(model: nn.Module) -> Any:
    """Draw the weights that a new network begins with zeros, so that text, time and guidance have an effect."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.std() < 0.05:
                parameter.normal_(std=0.2)
    return model.eval()
