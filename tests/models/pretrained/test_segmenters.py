"""Detectors of all supported families and SAM checkpoints in both formats, loaded from disk."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from segment_anything import build_sam_vit_b, sam_model_registry
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    SwinConfig,
)

from bootpig.models.pretrained.segmenters import SAM_TYPES, BoxSegmenter, ZeroShotDetector
from bootpig.models.pretrained.source import PROJECT, ModelError
from bootpig.models.pretrained.sources import resolve, resolve_file
from tests.models.hub import hub
from tests.models.tiny import save_clip, save_tokenizer
from tests.stages.samples import scenes

CHECKPOINTS = PROJECT / "models" / "toy" / "checkpoints"
OWLVIT = CHECKPOINTS / "owlvit"
SAM = CHECKPOINTS / "sam" / "sam_vit_toy.safetensors"
CPU = torch.device("cpu")


def save_owlv2(folder: Path) -> Path:
    tokenizer = save_tokenizer(folder)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    torch.manual_seed(0)
    config = Owlv2Config(
        text_config=text, vision_config={**small, "image_size": 64, "patch_size": 16}, projection_dim=32
    )
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)
    return folder


def save_grounding_dino(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "a", "mug", "teapot", "old"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], out_indices=[2, 3, 4]
        ),
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
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    image_processor = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def detector(folder: Path) -> ZeroShotDetector:
    return ZeroShotDetector(resolve("segment.detector", str(folder)), device=CPU, dtype=torch.float32)


def segmenter(file: Path, sam_type: str = "vit_toy") -> BoxSegmenter:
    return BoxSegmenter(resolve("segment.sam", str(file)), sam_type, device=CPU, dtype=torch.float32)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("save", [save_owlv2, save_grounding_dino])
def test_every_family_gives_the_best_box_within_the_picture(save, tmp_path: Path):
    found = detector(save(tmp_path))
    images = [Image.fromarray(scene.image).resize((96, 64)) for scene in scenes(3)]
    phrases = ["mug", "old teapot", "a mug"]
    detections = found.detect(images, phrases, threshold=0.0)
    for detection in detections:
        assert detection is not None
        x0, y0, x1, y1 = detection.box
        assert 0 <= x0 < x1 <= 96
        assert 0 <= y0 < y1 <= 64
        assert 0 < detection.score <= 1
    (alone,) = found.detect(images[1:2], phrases[1:2], threshold=0.0)
    assert alone is not None
    assert detections[1] is not None
    np.testing.assert_allclose(alone.score, detections[1].score, atol=1e-3)
    assert found.detect(images, phrases, threshold=1.0) == [None] * 3


def test_toy_models_find_and_cut_out_the_subject():
    some = scenes(12)
    images = [Image.fromarray(scene.image) for scene in some]
    detections = detector(OWLVIT).detect(images, [scene.kind for scene in some], threshold=0.0)
    errors = [np.abs(np.subtract(d.box, scene.box)).max() for d, scene in zip(detections, some, strict=True)]
    assert np.median(errors) < 5
    made = segmenter(SAM).segment(images, [tuple(map(float, scene.box)) for scene in some])
    assert np.mean([overlap(mask, scene.mask) for (mask, _), scene in zip(made, some, strict=True)]) > 0.85
    assert made[0][0].dtype == bool
    assert made[0][0].shape == (64, 64)
    assert 0 < made[0][1] < 1.2


def test_sam_takes_pictures_of_any_size_and_none():
    sam = segmenter(SAM)
    scene = scenes(1)[0]
    large = Image.fromarray(scene.image).resize((192, 192))
    ((mask, _),) = sam.segment([large], [tuple(3.0 * side for side in scene.box)])
    assert mask.shape == (192, 192)
    assert overlap(mask[1::3, 1::3], scene.mask) > 0.7
    assert sam.segment([], []) == []


def test_a_torch_checkpoint_is_read_as_weights_only(tmp_path: Path):
    torch.save(load_file(SAM), tmp_path / "sam.pth")
    scene = scenes(1)[0]
    arguments = [Image.fromarray(scene.image)], [tuple(map(float, scene.box))]
    ((expected, _),) = segmenter(SAM).segment(*arguments)
    ((mask, _),) = segmenter(tmp_path / "sam.pth").segment(*arguments)
    assert np.array_equal(mask, expected)

    torch.save({"weights": Path("x")}, tmp_path / "pickle.pth")
    with pytest.raises(ModelError, match=r"segment\.sam: '.*pickle\.pth' cannot be loaded \(UnpicklingError"):
        segmenter(tmp_path / "pickle.pth")


def test_damaged_detector_is_one_line(tmp_path: Path):
    folder = tmp_path / "owlvit"
    shutil.copytree(OWLVIT, folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"segment\.detector: the file '.*model\.safetensors' is damaged; restore it"):
        detector(folder)
    save_file({"nothing": torch.zeros(1)}, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"segment\.detector: '.*' lacks \d+ weights, such as '.*'; give"):
        detector(folder)


def test_model_that_does_not_detect_is_one_line(tmp_path: Path):
    with pytest.raises(
        ModelError, match=r"segment\.detector: '.*' cannot be loaded \(ValueError: .*CLIPConfig"
    ) as caught:
        detector(save_clip(tmp_path))
    assert "\n" not in str(caught.value)


def test_wrong_and_damaged_sam_are_one_line(tmp_path: Path):
    file = tmp_path / "sam.safetensors"
    weights = load_file(SAM)
    weights.pop(min(weights))
    save_file(weights, file)
    with pytest.raises(
        ModelError, match=r"segment\.sam: '.*' does not contain the weights of a vit_toy; give"
    ) as caught:
        segmenter(file)
    assert "\n" not in str(caught.value)
    file.write_bytes(SAM.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"segment\.sam: the file '.*sam\.safetensors' is damaged; restore it"):
        segmenter(file)


@pytest.mark.slow
def test_segment_anythings_own_checkpoint_by_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    torch.save(build_sam_vit_b().state_dict(), tmp_path / "sam_vit_b.pth")
    data = (tmp_path / "sam_vit_b.pth").read_bytes()
    with hub() as server:
        server.files["sam_vit_b.pth"] = data
        source = resolve_file("segment.sam", f"{server.url}/sam_vit_b.pth", hashlib.sha256(data).hexdigest())
        for _ in range(2):
            assert BoxSegmenter(source, "vit_b", device=CPU, dtype=torch.float32)
        assert server.asked == ["HEAD /sam_vit_b.pth", "GET /sam_vit_b.pth"]
    with pytest.raises(ModelError, match=r"segment\.sam: '.*' does not contain the weights of a vit_toy; give"):
        BoxSegmenter(source, "vit_toy", device=CPU, dtype=torch.float32)


def test_all_published_sizes_are_known():
    with torch.device("meta"):
        weights = {name: sum(p.numel() for p in builder().parameters()) for name, builder in sam_model_registry.items()}
    assert {round(weights[name] / 1e6) for name in ("vit_b", "vit_l", "vit_h")} == {94, 312, 641}
    assert {"vit_b", "vit_l", "vit_h"} <= set(SAM_TYPES)
