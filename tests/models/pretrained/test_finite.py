"""Weights that are NaN or infinite, or become so in the configured dtype, in every loader."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bootpig.flows.cli.generate import _pipeline as load_for_generate
from bootpig.models.painters.loading import load_refiner, load_text_to_image
from bootpig.models.pipelines.bases import load_base
from bootpig.models.pretrained.encoders import LatentEncoder
from bootpig.models.pretrained.finite import check_weights, first_not_finite
from bootpig.models.pretrained.segmenters import BoxSegmenter, ZeroShotDetector
from bootpig.models.pretrained.source import PROJECT, ModelError
from bootpig.models.pretrained.sources import resolve
from bootpig.stages.train.start import load_pipeline
from tests.models.families import save_refiner, save_sdxl

CHECKPOINTS = PROJECT / "models" / "toy" / "checkpoints"
CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


def spoil(file: Path, value: float, dtype: torch.dtype = torch.float32) -> str:
    """Write `value` into the last place of a file's largest tensor. Returns the tensor's name."""
    state = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    name = max(state, key=lambda name: state[name].numel())
    state[name].view(-1)[-1] = value
    save_file(state, file, metadata={"format": "pt"})
    return name


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINTS / "stable-diffusion", tmp_path / "base"))


WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def paint(folder: Path, dtype: torch.dtype):
    return load_text_to_image(resolve("synthesize.model", str(folder)), device=CPU, dtype=dtype)


def encode(folder: Path, dtype: torch.dtype):
    return LatentEncoder(resolve("encode.model", str(folder)), device=CPU, dtype=dtype)


def train(folder: Path, dtype: torch.dtype):
    return load_pipeline({"model": resolve("train.model", str(folder))})


@pytest.mark.parametrize(
    ("load", "field"), [(paint, "synthesize.model"), (encode, "encode.model"), (train, "train.model")]
)
@pytest.mark.parametrize(("part", "value"), [("unet", NAN), ("vae", INF), ("text_encoder", -INF)])
def test_a_weight_that_is_not_finite_is_named(load: Callable, field: str, part: str, value: float, base: Path):
    spoiled = base / part / WEIGHTS[part]
    name = spoil(spoiled, value)
    if load is encode and part == "unet":  # it does not load that
        assert load(base, torch.float32)
        return
    with pytest.raises(ModelError) as caught:
        load(base, torch.float32)
    assert str(caught.value) == (
        f"{field}: {str(base)!r}: the weights {name!r} of its {part} hold NaN or infinity; "
        "download or convert the model again"
    )


@pytest.mark.parametrize(("load", "section"), [(paint, "synthesize"), (encode, "encode")])
def test_weights_that_do_not_fit_the_dtype_are_told_from_damaged_ones(load: Callable, section: str, base: Path):
    name = spoil(base / "text_encoder" / "model.safetensors", 70000.0)
    assert load(base, torch.float32)
    assert load(base, torch.bfloat16)
    with pytest.raises(ModelError) as caught:
        load(base, torch.float16)
    assert str(caught.value) == (
        f"{section}.model: {str(base)!r}: the weights {name!r} of its text_encoder do not fit float16; "
        f"set {section}.dtype to bfloat16"
    )
    spoil(base / "text_encoder" / "model.safetensors", INF)
    with pytest.raises(ModelError, match="hold NaN or infinity"):
        load(base, torch.float16)


def test_a_refiner_is_scanned_too(tmp_path: Path):
    large, refiner = save_sdxl(tmp_path / "base"), save_refiner(tmp_path / "refiner")
    name = spoil(refiner / "unet" / WEIGHTS["unet"], NAN)
    painter = load_text_to_image(resolve("synthesize.model", str(large)), device=CPU, dtype=torch.float32)
    with pytest.raises(ModelError) as caught:
        load_refiner(resolve("synthesize.refiner", str(refiner)), painter, device=CPU, dtype=torch.float32)
    assert str(caught.value).startswith(f"synthesize.refiner: {str(refiner)!r}: the weights {name!r} of its unet hold")


def test_detector_and_sam(tmp_path: Path):
    detector = Path(shutil.copytree(CHECKPOINTS / "owlvit", tmp_path / "owlvit"))
    name = spoil(detector / "model.safetensors", NAN)
    with pytest.raises(ModelError) as caught:
        ZeroShotDetector(resolve("segment.detector", str(detector)), device=CPU, dtype=torch.float32)
    assert str(caught.value).startswith(f"segment.detector: {str(detector)!r}: the weights {name!r} hold NaN")
    sam = Path(shutil.copy(CHECKPOINTS / "sam" / "sam_vit_toy.safetensors", tmp_path))
    name = spoil(sam, INF)
    with pytest.raises(ModelError) as caught:
        BoxSegmenter(resolve("segment.sam", str(sam)), "vit_toy", device=CPU, dtype=torch.float32)
    assert str(caught.value).startswith(f"segment.sam: {str(sam)!r}: the weights {name!r} hold NaN")


@pytest.mark.parametrize("file", ["rsa.safetensors", "reference_unet/diffusion_pytorch_model.safetensors"])
def test_trained_weights(file: str, base: Path, tmp_path: Path):
    pipeline = load_base(resolve("train.model", str(base)), torch.float32)
    trained = tmp_path / "trained"
    pipeline.save_bootpig(trained, {"base": str(base)})
    name = spoil(trained / file, 70000.0)
    source = resolve("model.base", str(base))
    assert load_for_generate(trained, source, None)
    with pytest.raises(ModelError) as caught:
        load_for_generate(trained, source, "float16")
    assert str(caught.value).endswith("do not fit float16; set --dtype to bfloat16")
    spoil(trained / file, NAN)
    with pytest.raises(ModelError) as caught:
        load_for_generate(trained, source, None)
    assert str(caught.value).startswith(f"model: {str(trained)!r}: the weights {name!r} of its ")
    sources = {"model": resolve("train.model", str(base)), "init_from": resolve("train.init_from", str(trained))}
    with pytest.raises(ModelError, match=r"^train\.init_from: .* hold NaN or infinity"):
        load_pipeline(sources)


class Parts(nn.Module):
    """Tensors of all kinds that a model may have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.meta = nn.Parameter(torch.ones(3, device="meta"))
        self.eight = nn.Parameter(torch.ones(3).to(torch.float8_e4m3fn), requires_grad=False)
        self.register_buffer("positions", torch.arange(3))
        self.register_buffer("mask", torch.full((3, 3), -INF).triu(1))
        self.register_buffer("made", torch.full((3,), NAN), persistent=False)
        self.register_buffer("waves", torch.ones(3, dtype=torch.complex64))
        self.register_buffer("mean", torch.zeros(3))


def test_integers_masks_and_tensors_without_data_are_no_problem():
    check_weights("f", "s", Parts())


@pytest.mark.parametrize("name", ["weight", "eight", "waves", "mean"])
def test_all_kinds_of_floats_are_scanned(name: str):
    model = Parts()
    state = model.state_dict()[name]
    state.view(torch.uint8).fill_(0x7F) if name == "eight" else state.fill_(NAN)
    with pytest.raises(ModelError, match=f"f: 's': the weights '{name}' hold NaN"):
        check_weights("f", "s", model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_scan_is_exact(dtype: torch.dtype):
    largest = torch.finfo(dtype).max
    large = torch.full((1000,), largest, dtype=dtype)
    assert first_not_finite([("sum overflows", large), ("nothing", torch.empty(0, dtype=dtype))]) is None
    for value in (NAN, INF, -INF):
        for place in (0, 511, 999):
            bad = large.clone()
            bad[place] = value
            found = first_not_finite([("good", large), ("bad", bad)])
            assert found is not None
            assert found[0] == "bad"
    both = torch.zeros(2, dtype=dtype)
    both[0], both[1] = INF, -INF
    assert first_not_finite([("both", both)]) is not None


def test_shipped_checkpoints_are_finite_in_half_precision():
    assert paint(CHECKPOINTS / "stable-diffusion", torch.float16)
