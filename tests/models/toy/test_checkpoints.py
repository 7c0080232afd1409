"""The committed checkpoints load with the real classes and work well on held-out pictures.

`python -m models.toy.check` measures the same on more pictures, against the project's bars.
"""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from segment_anything import SamPredictor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    CLIPModel,
    Dinov2Model,
    OwlViTForObjectDetection,
)

from bootpig.models.toy.check import Check, box_iou
from bootpig.models.toy.clip_judge import subject_auc
from bootpig.models.toy.dino import identity_auc
from bootpig.models.toy.looks import COLOURS, colour_phrases
from bootpig.models.toy.pretrain import CHECKPOINTS
from bootpig.models.toy.renders import white_reference
from bootpig.models.toy.sam_model import build_sam_vit_toy
from bootpig.models.toy.subjects import look_of
from bootpig.models.toy.world import KINDS, SCENES, SIZE, Scene, draw_identity, render_scene


@pytest.fixture(scope="module")
def held_out() -> list[Scene]:
    """Four scenes of each kind, of held-out identities."""
    return [render_scene(f"tests/{index}", "held_out", kind=kind) for kind in KINDS for index in range(4)]


@pytest.fixture(scope="module")
def images(held_out: list[Scene]) -> list[Image.Image]:
    return [Image.fromarray(scene.image) for scene in held_out]


@pytest.fixture(scope="module")
def kinds() -> np.ndarray:
    return np.repeat(np.arange(len(KINDS)), 4)


@pytest.fixture(scope="module")
def check() -> Check:
    return Check(CHECKPOINTS, Path("unused"))


@pytest.fixture(scope="module")
def boxes(check: Check, images: list[Image.Image], kinds: np.ndarray) -> list[np.ndarray | None]:
    with torch.inference_mode():
        return check.detections(images, kinds)


def test_detector_finds_the_subject(boxes: list[np.ndarray | None], held_out: list[Scene]) -> None:
    hits = [b is not None and box_iou(b, np.array(s.box)) >= 0.5 for b, s in zip(boxes, held_out, strict=True)]
    assert np.mean(hits) >= 0.93


@torch.inference_mode()
def test_detector_tells_phrases_apart(images: list[Image.Image], kinds: np.ndarray) -> None:
    """The kind in the picture scores highest for all ways to name it; other nouns score below the threshold."""
    model = AutoModelForZeroShotObjectDetection.from_pretrained(CHECKPOINTS / "owlvit", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(CHECKPOINTS / "owlvit")
    assert isinstance(model, OwlViTForObjectDetection)
    for form in ("a {}", "{}", "a faded red {}"):
        queries = [[*(form.format(kind) for kind in KINDS), "a dog"]] * len(images)
        scores = model(**processor(text=queries, images=images, return_tensors="pt")).logits.sigmoid().amax(1)
        assert (scores[:, :-1].argmax(1).numpy() == kinds).mean() >= 0.9, form
        assert (scores[:, -1] < 0.1).float().mean() >= 0.9, form


@torch.inference_mode()
def test_sam_masks_the_subject_in_the_box_and_knows_how_well(held_out: list[Scene]) -> None:
    predictor = SamPredictor(build_sam_vit_toy(CHECKPOINTS / "sam" / "sam_vit_toy.safetensors"))
    overlaps, promised = [], []
    for scene in held_out:
        predictor.set_image(scene.image)
        masks, quality, _ = predictor.predict(box=np.array(scene.box), multimask_output=False)
        assert masks.shape == (1, SIZE, SIZE)
        assert masks.dtype == bool
        overlaps.append((masks[0] & scene.mask).sum() / (masks[0] | scene.mask).sum())
        promised.append(quality[0])
    assert np.mean(overlaps) >= 0.88
    assert np.abs(np.array(promised) - overlaps).mean() < 0.1


@torch.inference_mode()
def test_clip_names_kind_and_scene(check: Check, images: list[Image.Image], held_out: list[Scene]) -> None:
    judged = check.judged(images)
    assert np.mean([KINDS[k] == scene.kind for k, scene in zip(judged["kind"], held_out, strict=True)]) >= 0.93
    assert np.mean([SCENES[k] == scene.scene for k, scene in zip(judged["scene"], held_out, strict=True)]) >= 0.93


@torch.inference_mode()
def test_the_clip_judge_names_kind_and_scene(check: Check, images: list[Image.Image], held_out: list[Scene]) -> None:
    judged = check.judged(images, "clip-judge")
    assert np.mean([KINDS[k] == scene.kind for k, scene in zip(judged["kind"], held_out, strict=True)]) >= 0.93
    assert np.mean([SCENES[k] == scene.scene for k, scene in zip(judged["scene"], held_out, strict=True)]) >= 0.93


@torch.inference_mode()
def test_the_clip_judge_weighs_the_subject_over_the_scene(check: Check) -> None:
    """One subject in two scenes is closer than two of a kind in one scene. For the pipeline's CLIP it is not."""
    rng, pictures = random.Random(0), []
    kinds = np.repeat(np.arange(4), 12)
    backdrops = np.array([rng.sample(range(4), 2) for _ in kinds])
    for kind, pair in zip(kinds, backdrops, strict=True):
        identity = draw_identity(rng, KINDS[kind], "held_out")
        for scene in pair:
            picture = render_scene(rng.random().hex(), kind=KINDS[kind], identity=identity, scene=SCENES[scene])
            pictures.append(Image.fromarray(picture.image))
    auc = {}
    for clip in ("clip", "clip-judge"):
        embeds, _ = check.embedded(clip, pictures, ["a"])
        auc[clip] = subject_auc(embeds.view(len(kinds), 2, -1), kinds, backdrops)
    assert auc["clip-judge"] >= 0.8
    assert auc["clip"] < 0.2


@torch.inference_mode()
def test_the_clip_judge_reads_colours(check: Check, images: list[Image.Image], held_out: list[Scene]) -> None:
    """The true first colour is nearest among the captions of a kind's fourteen colours."""
    image_embeds, text_embeds = check.embedded("clip-judge", images, colour_phrases())
    cosines = (image_embeds @ text_embeds.T).view(len(images), len(KINDS), len(COLOURS))
    right = [
        cosines[row, KINDS.index(scene.kind)].argmax() == look_of(scene.kind, scene.identity).colour
        for row, scene in enumerate(held_out)
    ]
    assert np.mean(right) >= 0.5  # a fourteenth by chance


@torch.inference_mode()
def test_dino_tells_identities_apart_even_blurred() -> None:
    model = AutoModel.from_pretrained(CHECKPOINTS / "dino", dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(CHECKPOINTS / "dino")
    assert isinstance(model, Dinov2Model)
    rng, pictures = random.Random(0), []
    kinds = np.repeat(np.arange(3), 8)
    for kind in kinds:
        identity = draw_identity(rng, KINDS[kind], "held_out")
        scene = Image.fromarray(render_scene(rng.random().hex(), kind=KINDS[kind], identity=identity).image)
        blurred = scene.resize((32, 32), Image.Resampling.BOX).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        pictures += [scene, blurred, Image.fromarray(white_reference(KINDS[kind], identity, rng))]
    output = model(**processor(pictures, return_tensors="pt")).last_hidden_state[:, 0]
    embeds = torch.nn.functional.normalize(output, dim=-1).view(len(kinds), 3, -1)
    assert identity_auc(embeds, kinds) >= 0.96


def test_weights_are_float16_and_every_tensor_is_used() -> None:
    """No warning about missing or unexpected weights, and nothing stored wider than needed."""
    for part in ("owlvit", "clip", "clip-judge", "dino"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loader = {"owlvit": OwlViTForObjectDetection, "dino": Dinov2Model}.get(part, CLIPModel)
            _, info = loader.from_pretrained(CHECKPOINTS / part, output_loading_info=True)
        assert not info["missing_keys"] | info["unexpected_keys"], part
    for file in CHECKPOINTS.rglob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            names = weights.keys()
            assert all(weights.get_slice(name).get_dtype() in ("F16", "I64") for name in names), file


def test_size(check: Check) -> None:
    assert check.size()["megabytes"] <= 40
