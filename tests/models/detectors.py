"""Random detectors of every class that segment accepts, small enough for a test, with offline tokenizers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTextConfig,
    DetrImageProcessor,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    OmDetTurboConfig,
    OmDetTurboForObjectDetection,
    OmDetTurboProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    OwlViTProcessor,
    SwinConfig,
)

from tests.models.tiny import save_tokenizer

_BERT_WORDS = ("a", "mug", "teapot", "old", "st", "bernard", "no", "5", "perfume", "bottle", ",", "'", "s", "##s", "猫")
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def save_owlvit(folder: Path) -> Path:
    return _save_owl(folder, OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor)


def save_owlv2(folder: Path) -> Path:
    return _save_owl(folder, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor)


def save_grounding_dino(folder: Path) -> Path:
    return _save_dino(folder, GroundingDinoConfig, GroundingDinoForObjectDetection)


def save_mm_grounding_dino(folder: Path) -> Path:
    """Also the class of LLMDet's checkpoints."""
    return _save_dino(folder, MMGroundingDinoConfig, MMGroundingDinoForObjectDetection)


def save_omdet_turbo(folder: Path) -> Path:
    tokenizer = save_tokenizer(folder, 77)
    text = CLIPTextConfig(
        **_SMALL,
        projection_dim=32,
        vocab_size=len(tokenizer),
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    config = OmDetTurboConfig(
        text_config=text,
        backbone_config=_swin(),
        apply_layernorm_after_vision_backbone=False,  # for timm's layout
        image_size=64,
        text_projection_in_dim=32,
        text_projection_out_dim=32,
        task_encoder_hidden_dim=32,
        class_embed_dim=32,
        num_queries=9,
        encoder_hidden_dim=16,
        vision_features_channels=[16, 16, 16],
        encoder_in_channels=[16, 32, 64],
        encoder_attention_heads=2,
        encoder_dim_feedforward=32,
        decoder_hidden_dim=16,
        decoder_num_heads=2,
        decoder_num_layers=2,
        decoder_dim_feedforward=32,
    )
    _lively(OmDetTurboForObjectDetection(config)).save_pretrained(folder)
    OmDetTurboProcessor(DetrImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)
    return folder


FAMILIES = {
    "owlvit": save_owlvit,
    "owlv2": save_owlv2,
    "grounding-dino": save_grounding_dino,
    "mm-grounding-dino": save_mm_grounding_dino,
    "omdet-turbo": save_omdet_turbo,
}


def _save_owl(folder: Path, config_class, model_class, image_processor, processor) -> Path:
    tokenizer = save_tokenizer(folder)
    text = {**_SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    vision = {**_SMALL, "image_size": 64, "patch_size": 16}
    torch.manual_seed(0)
    model = model_class(config_class(text_config=text, vision_config=vision, projection_dim=32))
    for layer in (model.class_head.logit_shift, model.class_head.logit_scale):
        torch.nn.init.zeros_(layer.weight)  # random ones make every score 0 or 1
    torch.nn.init.normal_(model.box_head.dense2.weight, std=0.01)  # and every box empty
    model.save_pretrained(folder)
    processor(image_processor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)
    return folder


def _lively(model: torch.nn.Module) -> torch.nn.Module:
    """Make the result depend on the phrase and the picture: freshly initialised layers hardly pass anything on."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def _swin() -> SwinConfig:
    return SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], out_indices=[2, 3, 4])


def _save_dino(folder: Path, config_class, model_class) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    # the model knows its separators by their ids in BERT's vocabulary
    words = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    words |= {2000 + place: word for place, word in enumerate(_BERT_WORDS)}
    vocabulary = [words.get(place, f"[unused{place}]") for place in range(max(words) + 1)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizer.from_pretrained(folder, model_max_length=512)
    torch.manual_seed(0)
    config = config_class(
        backbone_config=_swin(),
        text_config=BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
        ),
        num_queries=9,
        encoder_layers=1,
        decoder_layers=2,
        d_model=32,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_feature_levels=3,
        max_text_len=32,
    )
    _lively(model_class(config)).save_pretrained(folder)
    image_processor = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder
