"""Model files are untrusted: no pickle and no code that comes with them is executed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from bootpig.models.pipelines.bases import load_base
from bootpig.models.pretrained.embedders import ClipEmbedder, DinoEmbedder
from bootpig.models.pretrained.painters import LatentEncoder, load_text_to_image
from bootpig.models.pretrained.segmenters import BoxSegmenter, ZeroShotDetector
from bootpig.models.pretrained.source import ModelError, ModelSource, loading
from bootpig.models.pretrained.sources import resolve
from tests.models.detectors import save_grounding_dino
from tests.models.families import save_sd21
from tests.models.tiny import save_clip, save_vit

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


class Trap:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.file,)


def source(folder: Path) -> ModelSource:
    return resolve("field", str(folder))


def embed(kind: type[ClipEmbedder | DinoEmbedder]) -> Callable[[Path], object]:
    def load(folder: Path) -> object:
        with loading("field", str(folder)):
            return kind(str(folder))

    return load


LOADERS: dict[str, tuple[Callable[[Path], Path], str, Callable[[Path], object]]] = {
    "painter": (save_sd21, "unet/diffusion_pytorch_model", lambda f: load_text_to_image(source(f), **CPU)),
    "encoder": (save_sd21, "vae/diffusion_pytorch_model", lambda f: LatentEncoder(source(f), **CPU)),
    "text encoder": (save_sd21, "text_encoder/pytorch_model", lambda f: LatentEncoder(source(f), **CPU)),
    "base": (save_sd21, "unet/diffusion_pytorch_model", lambda f: load_base(source(f), torch.float32)),
    "detector": (save_grounding_dino, "pytorch_model", lambda f: ZeroShotDetector(source(f), **CPU)),
    "clip": (save_clip, "pytorch_model", embed(ClipEmbedder)),
    "dino": (save_vit, "pytorch_model", embed(DinoEmbedder)),
}


@pytest.mark.parametrize("name", list(LOADERS))
def test_no_pickle_is_run(name: str, tmp_path: Path) -> None:
    save, weights, load = LOADERS[name]
    folder = save(tmp_path / "model")
    target = folder / f"{weights}.bin"
    for file in target.parent.glob("*.safetensors"):
        file.unlink()
    trap = tmp_path / "sprung"
    torch.save({"weight": Trap(trap)}, target)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load(folder)
    assert not trap.exists() and "\n" not in str(caught.value)
    torch.load(target, weights_only=False)
    assert trap.exists(), "the trap works where pickles are run"


def test_a_sam_checkpoint_is_no_pickle_either(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    torch.save({"weight": Trap(trap)}, tmp_path / "sam.pth")
    with pytest.raises(ModelError, match="cannot be loaded"):
        BoxSegmenter(source(tmp_path / "sam.pth"), "vit_toy", **CPU)
    assert not trap.exists()


def test_a_trained_model_is_read_from_safetensors_alone(tmp_path: Path) -> None:
    pipeline = load_base(source(save_sd21(tmp_path / "base")), torch.float32)
    pipeline.save_bootpig(tmp_path / "trained")
    (weights,) = (tmp_path / "trained" / "reference_unet").glob("*.safetensors")
    torch.save({"weight": Trap(tmp_path / "sprung")}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        pipeline.load_bootpig(tmp_path / "trained")
    assert not (tmp_path / "sprung").exists()


def test_plain_weights_in_torchs_own_format_are_read(tmp_path: Path) -> None:
    """The format of facebook/dino-vits16 and others."""
    folder = save_vit(tmp_path)
    expected = DinoEmbedder(str(folder)).model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(expected, folder / "pytorch_model.bin")
    for name, tensor in DinoEmbedder(str(folder)).model.state_dict().items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("name", ["detector", "clip", "dino"])
def test_code_that_comes_with_a_model_is_not_run(name: str, tmp_path: Path) -> None:
    save, _, load = LOADERS[name]
    folder = save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    classes = ("AutoConfig", "AutoModel", "AutoModelForZeroShotObjectDetection", "AutoProcessor", "AutoTokenizer")
    config["auto_map"] = dict.fromkeys(classes, "own.Own")
    config["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'sprung')!r}).touch()\n")
    with pytest.raises(ModelError, match=r"trust_remote_code|custom code"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


def test_code_that_comes_with_a_pipeline_is_not_run(tmp_path: Path) -> None:
    folder = save_sd21(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["own", "Own"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'sprung')!r}).touch()\n")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_text_to_image(source(folder), **CPU)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(Exception, match="Own"):
        DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert (tmp_path / "sprung").exists(), "the trap works where code is trusted"
