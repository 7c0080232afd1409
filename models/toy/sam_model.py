"""The toy SAM: segment-anything's own classes at a size for 64×64 pictures, built like vit_b, vit_l and vit_h."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

IMAGE_SIZE = 64
PATCH = 4
PROMPT_DIM = 64


def build_sam_vit_toy(checkpoint: str | Path | None = None) -> Sam:
    """The toy `Sam` in eval mode, float32; `checkpoint` is a safetensors file of its weights.

    Raises:
        OSError, safetensors.SafetensorError: `checkpoint` cannot be read.
        RuntimeError: its tensors do not match this model.
    """
    grid = IMAGE_SIZE // PATCH
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=IMAGE_SIZE,
            patch_size=PATCH,
            embed_dim=96,
            depth=4,
            num_heads=3,
            out_chans=PROMPT_DIM,
            qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=False,
            window_size=8,
            global_attn_indexes=(1, 3),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=PROMPT_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=PROMPT_DIM, mlp_dim=256, num_heads=4),
            transformer_dim=PROMPT_DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=64,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    if checkpoint is not None:
        sam.load_state_dict(load_file(checkpoint))
    return sam.eval()
