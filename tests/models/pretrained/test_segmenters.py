"""The toy detector and SAM checkpoints in both formats, loaded from disk."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from segment_anything import build_sam_vit_b, sam_model_registry

from bootpig.models.pretrained.segmenters import SAM_TYPES, BoxSegmenter, ZeroShotDetector
from bootpig.models.pretrained.source import PROJECT, ModelError
from bootpig.models.pretrained.sources import resolve, resolve_file
from tests.models.hub import hub
from tests.models.tiny import save_clip
from tests.stages.samples import scenes

CHECKPOINTS = PROJECT / "models" / "toy" / "checkpoints"
OWLVIT = CHECKPOINTS / "owlvit"
SAM = CHECKPOINTS / "sam" / "sam_vit_toy.safetensors"
CPU = torch.device("cpu")


def detector(folder: Path) -> ZeroShotDetector:
    return ZeroShotDetector(resolve("segment.detector", str(folder)), device=CPU, dtype=torch.float32)


def segmenter(file: Path, sam_type: str = "vit_toy") -> BoxSegmenter:
    return BoxSegmenter(resolve("segment.sam", str(file)), sam_type, device=CPU, dtype=torch.float32)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


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
    with pytest.raises(ModelError, match=r"segment\.detector: '.*' is a 'clip' model, .*; use OWL-ViT") as caught:
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
