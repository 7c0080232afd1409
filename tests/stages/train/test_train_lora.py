"""Training with LoRA: one copy of the base, exact resume, small files, and what is refused before any work."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from bootpig.models.core.bootpig import BootPIG
from bootpig.models.core.lora import Lora
from bootpig.models.pipelines.export import save_trained, standalone_source
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pretrained.inspection import trained_problems
from bootpig.models.pretrained.source import ModelError
from bootpig.models.pretrained.sources import resolve
from bootpig.stages.engine.checkpoints import CHECKPOINTS_KEPT
from bootpig.stages.engine.contract import InputError, ReduceInput
from bootpig.stages.engine.estimates import SampleShape, Workload
from bootpig.stages.train import loop, precision
from bootpig.stages.train.config import TrainConfig
from bootpig.stages.train.grid import SampleGrid
from bootpig.stages.train.loop import Trainer
from bootpig.stages.train.lora import lora_of
from bootpig.stages.train.stage import Train
from tests.stages.train.training_data import FolderCheckpoints, save_base, write_units

PROJECT = Path(__file__).resolve().parents[3]
TOY = PROJECT / "models/toy/checkpoints/stable-diffusion"
FILES = ("reference_lora.safetensors", "base_lora.safetensors")


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampleGrid, "STEPS", 2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReduceInput:
    return write_units(tmp_path_factory.mktemp("units"), (5, 4, 3))


def recipe(base: Path, **values: object) -> TrainConfig:
    small = {
        "method": "lora",
        "lora_rank": 4,
        "steps": 4,
        "global_batch_size": 4,
        "per_device_batch_size": 4,
        "learning_rate_reference": 1e-2,
        "learning_rate_base": 1e-2,
        "log_every": 2,
        "drop_reference": 0.3,
    }
    return TrainConfig(model=str(base), **{**small, **values})


def train(config: TrainConfig, data: ReduceInput, folder: Path, checkpoints: Path | None = None, stop: int = 0) -> Path:
    """Train into `folder`, up to step `stop` if that is given. Returns the exported model."""
    folder.mkdir(parents=True, exist_ok=True)

    def progress(done: int, total: int, text: str) -> None:
        if stop and done == stop:
            raise InterruptedError

    Train(config, seed=0).run(data, folder, FolderCheckpoints(checkpoints or folder / "none"), progress)
    return folder / "model"


def exported(model: Path) -> dict[str, torch.Tensor]:
    return {f"{file.name}/{k}": v for file in model.glob("*.safetensors") for k, v in load_file(file).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return bool(one) and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(base: Path, data: ReduceInput, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(base), data, tmp_path_factory.mktemp("trained"))


def features(pipeline: BootPIGPipeline) -> torch.Tensor:
    """A picture's latents."""
    references = [torch.linspace(0, 1, 3 * 16 * 16).reshape(3, 16, 16)]
    generator = torch.Generator().manual_seed(0)
    pipeline.set_progress_bar_config(disable=True)
    out = pipeline("a mug", references, num_inference_steps=2, generator=generator, output_type="latent")
    return out.images


@pytest.mark.parametrize("more", [{}, {"ema_decay": 0.9, "reference_timestep": "zero", "mixed_precision": "no"}])
def test_resume_is_exact_and_checkpoints_hold_adapters_alone(
    base: Path, data: ReduceInput, tmp_path: Path, more: dict[str, object]
) -> None:
    config = recipe(base, checkpoint_every=2, sample_every=4, log_every=1, **more)
    straight = train(config, data, tmp_path / "straight")
    with pytest.raises(InterruptedError):
        train(config, data, tmp_path / "first", tmp_path / "kept", stop=3)
    kept = tmp_path / "kept/checkpoint-00002"
    for file in kept.glob("*.safetensors"):
        assert all(".lora_" in name for name in load_file(file)), file
    assert (kept / "average.safetensors").exists() == ("ema_decay" in more)
    resumed = train(config, data, tmp_path / "second", tmp_path / "kept")
    assert equal(exported(straight), exported(resumed))
    picture = "samples/step-000004.png"
    assert (tmp_path / "straight" / picture).read_bytes() == (tmp_path / "second" / picture).read_bytes()
    for file in FILES + ("bootpig.json", "README.md"):
        assert (straight / file).read_bytes() == (resumed / file).read_bytes()


def test_both_networks_train_beside_one_copy_of_the_base(
    base: Path, data: ReduceInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_file(base / "unet/diffusion_pytorch_model.safetensors")
    seen = {}
    fit = loop.Trainer.fit

    def look(self: Trainer, *arguments: object) -> None:
        fit(self, *arguments)
        seen["model"] = self.model
        seen["dtypes"] = {p.dtype for p in self.model.parameters() if not p.requires_grad and p.ndim > 1}
        unet = {p.data_ptr() for name, p in self.model.unet.named_parameters() if ".lora_" not in name}
        shared = [p for name, p in self.model.reference_unet.named_parameters() if ".lora_" not in name]
        assert len(shared) > 50 and all(p.data_ptr() in unet for p in shared)
        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        assert all(".lora_" in name for name in trained)
        assert {name.split(".")[0] for name in trained} == {"unet", "reference_unet"}
        assert all(".attn1." in name for name in trained if name.startswith("unet."))
        assert any(".attn2." in name for name in trained)
        assert not any(name.startswith("up_blocks.1") for name in dict(self.model.reference_unet.named_parameters()))

    monkeypatch.setattr(loop.Trainer, "fit", look)
    model = train(recipe(base, drop_reference=0, mixed_precision="bf16"), data, tmp_path / "out")
    assert torch.bfloat16 in seen["dtypes"]
    frozen = {k.replace(".base_layer", ""): v for k, v in seen["model"].unet.state_dict().items() if ".lora_" not in k}
    assert equal(frozen, before), "the base is as it was"
    for file in FILES:
        moved = [name for name, tensor in load_file(model / file).items() if "lora_B" in name and tensor.any()]
        assert len(moved) == sum("lora_B" in name for name in load_file(model / file)), file


@pytest.mark.parametrize("base_part", ["none", "rsa", "all"])
@pytest.mark.parametrize("reference", [True, False])
def test_what_is_trainable_has_adapters(base: Path, reference: bool, base_part: str) -> None:
    if base_part == "none" and not reference:
        return
    unet = BootPIGPipeline.from_pretrained(base).unet
    config = recipe(base, trainable={"reference": reference, "base": base_part})
    model = BootPIG.from_unet(unet, train_reference=reference, train_base=base_part, lora=lora_of(config))
    places = {name.split(".")[0] for name in model.trained_state()}
    assert ("reference_unet" in places, "unet" in places) == (reference, base_part != "none")
    text = any(".attn2." in name for name in model.trained_state() if name.startswith("unet."))
    assert text == (base_part == "all")
    assert [g["name"] for g in model.parameter_groups(1, 1)] == [
        name for name, has in (("reference", reference), ("base", base_part != "none")) if has
    ]


def test_the_first_step_is_that_of_the_untrained_model(base: Path, data: ReduceInput, tmp_path: Path) -> None:
    def first_loss(name: str, **values: object) -> float:
        config = recipe(base, steps=1, log_every=1, mixed_precision="no", drop_reference=0, **values)
        train(config, data, tmp_path / name)
        return float(json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])["loss"])

    assert first_loss("lora") == first_loss("full", method="full", lora_rank=16)
    still = train(recipe(base, learning_rate_reference=0, learning_rate_base=0), data, tmp_path / "still")
    pipeline = BootPIGPipeline.from_pretrained(base)
    untrained = features(pipeline)
    pipeline.load_bootpig(still)
    assert torch.equal(features(pipeline), untrained)


def test_accumulation_and_checkpointing_give_the_same_weights(
    base: Path, data: ReduceInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(base, mixed_precision="no", drop_reference=0.5, steps=3)
    whole = exported(train(config, data, tmp_path / "whole"))
    for name, change in (("parts", {"per_device_batch_size": 2}), ("again", {"gradient_checkpointing": True})):
        other = exported(train(config.model_copy(update=change), data, tmp_path / name))
        for key in whole:
            torch.testing.assert_close(other[key], whole[key], rtol=0, atol=2e-4)
    config = recipe(base, steps=3, mixed_precision="bf16")
    low = exported(train(config, data, tmp_path / "low"))
    monkeypatch.setattr(precision.FrozenInBfloat16, "__init__", lambda self, *_: setattr(self, "_originals", []))
    assert equal(low, exported(train(config, data, tmp_path / "plain")))


def test_the_loaded_model_draws_as_the_trained_one(
    base: Path, data: ReduceInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    save = BootPIGPipeline.save_bootpig

    def draw(self: BootPIGPipeline, *arguments: object, **options: object) -> None:
        self.unet.eval(), self.reference_unet.eval()
        drawn.append(features(self))
        save(self, *arguments, **options)

    monkeypatch.setattr(BootPIGPipeline, "save_bootpig", draw)
    config = recipe(base, lora_alpha=8, trainable={"base": "all"}, mixed_precision="no")
    model = train(config, data, tmp_path / "out")
    pipeline = BootPIGPipeline.from_pretrained(base)
    untrained = features(pipeline)
    info = pipeline.load_bootpig(model)
    assert (info["method"], info["lora"]["rank"], info["lora"]["alpha"]) == ("lora", 4, 8)
    assert not any("lora" in name for name in pipeline.unet.state_dict())
    torch.testing.assert_close(features(pipeline), drawn[0], rtol=1e-3, atol=1e-4)
    assert (features(pipeline) - untrained).abs().max() > 1e-2
    with pytest.raises(ValueError, match="already holds a trained model; load the base again"):
        pipeline.load_bootpig(model)
    # a complete folder holds merged weights, and loads without this package
    pipeline.save_pretrained(tmp_path / "alone")
    assert torch.equal(features(BootPIGPipeline.from_pretrained(tmp_path / "alone")), features(pipeline))


def test_diffusers_reads_the_base_adapter(base: Path, trained: Path) -> None:
    from diffusers import StableDiffusionPipeline

    ours, theirs = BootPIGPipeline.from_pretrained(base), StableDiffusionPipeline.from_pretrained(base)
    ours.load_bootpig(trained)
    theirs.load_lora_weights(trained, weight_name=FILES[1])
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    merged = ours.unet.state_dict()
    for name, weight in theirs.unet.state_dict().items():
        torch.testing.assert_close(weight, merged[name], rtol=0, atol=1e-6)


def test_the_single_file_of_a_saved_pipeline_loads_lora(
    base: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alone.py").write_text(standalone_source(BootPIGPipeline), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("alone", tmp_path / "alone.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "alone", module)
    spec.loader.exec_module(module)
    drawn = []
    for kind in (BootPIGPipeline, module.BootPIGPipeline):
        pipeline = kind.from_pretrained(base)
        pipeline.load_bootpig(trained)
        drawn.append(features(pipeline))
    assert torch.equal(*drawn)


def test_an_unknown_method_is_named(base: Path, trained: Path, tmp_path: Path) -> None:
    folder = damaged(trained, tmp_path / "new")
    info = json.loads((folder / "bootpig.json").read_text())
    (folder / "bootpig.json").write_text(json.dumps({**info, "method": "dora"}))
    (problem,) = trained_problems("model", folder, resolve("train.model", str(base)))
    assert "was trained with 'dora', which this version does not know" in problem
    with pytest.raises(ValueError, match="knows the methods full and lora, not dora"):
        BootPIGPipeline.from_pretrained(base).load_bootpig(folder)


def test_training_goes_on_from_lora(base: Path, data: ReduceInput, trained: Path, tmp_path: Path) -> None:
    still = recipe(base, steps=1, init_from=str(trained), learning_rate_reference=0, learning_rate_base=0)
    assert not Train(still, 0).check_models()
    assert equal(exported(trained), exported(train(still, data, tmp_path / "second")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "full", "lora_rank": 16}, "train.method: full, but train.init_from was trained with lora; set"),
        ({"lora_rank": 2}, "train.lora_rank: 2, but train.init_from has 4; set lora_rank to 4"),
        ({"lora_alpha": 2}, "train.lora_alpha: 2.0, but train.init_from has 4"),
        ({"lora_targets": ["to_q"]}, r"train.lora_targets: \['to_q'\], but train.init_from has \['to_q', 'to_k'"),
        ({"trainable": {"base": "none"}}, "train.trainable: the base is not trained, but train.init_from has LoRA"),
    ],
)
def test_another_kind_to_start_from_is_one_line(
    base: Path, trained: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=f"^{message}"):
        Train(recipe(base, init_from=str(trained), **change), 0).models()


def test_full_weights_to_start_from_are_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "bootpig.json").write_text('{"format": 1}')
    with pytest.raises(ModelError, match=r"^train.method: lora, but train.init_from was trained with full; set method"):
        Train(recipe(base, init_from=str(tmp_path)), 0).models()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_targets": ["to_q", "to_x"]}, r"train.lora_targets: 'to_x' ends the name of no linear or convolution"),
        ({"lora_targets": ["ff.net.2"]}, r"train.lora_targets: ff.net.2 are no layers of self-attention, which train"),
        ({"lora_rank": 64}, r"train.lora_rank: 64 is above the width of .*to_q, 32; use a lower rank"),
    ],
)
def test_settings_that_do_not_fit_the_base(
    base: Path, data: ReduceInput, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    stage = Train(recipe(base, **change), 0)
    (problem,) = stage.check_models()
    assert re.match(message, problem) and "\n" not in problem
    with pytest.raises(InputError, match=f"^{message}"):
        train(stage.config, data, tmp_path / "out")


def test_config() -> None:
    for wrong in ({"lora_rank": 4}, {"lora_alpha": 1.0}, {"lora_targets": ["to_q"]}):
        with pytest.raises(ValidationError, match=f"{next(iter(wrong))}: no effect while method is full; set method"):
            TrainConfig(model="x", **wrong)
    for wrong in ({"lora_rank": 0}, {"lora_alpha": 0}, {"lora_targets": []}):
        with pytest.raises(ValidationError):
            TrainConfig(model="x", method="lora", **wrong)
    plain, lora = TrainConfig(model="x").hashed(), TrainConfig(model="x", method="lora").hashed()
    assert lora == {**plain, "method": "lora"}


def damaged(trained: Path, folder: Path, **lora: object) -> Path:
    """A copy of a trained model with other settings in its bootpig.json."""
    shutil.copytree(trained, folder)
    info = json.loads((folder / "bootpig.json").read_text())
    info["lora"].update(lora)
    (folder / "bootpig.json").write_text(json.dumps(info))
    return folder


def test_lora_files_that_do_not_fit_are_one_line(base: Path, trained: Path, tmp_path: Path) -> None:
    source = resolve("train.model", str(base))
    assert trained_problems("model", trained, source) == []
    cases = {"rank 0": damaged(trained, tmp_path / "0", rank=0), "rank 3": damaged(trained, tmp_path / "3", rank=3)}
    cases["missing"] = damaged(trained, tmp_path / "missing")
    (cases["missing"] / FILES[1]).unlink()
    cases["cut"] = damaged(trained, tmp_path / "cut")
    (cases["cut"] / FILES[0]).write_bytes((trained / FILES[0]).read_bytes()[:900])
    wide, high, alone = (damaged(trained, tmp_path / name) for name in ("wide", "high", "alone"))
    tensors = load_file(trained / FILES[0])
    name = next(key for key in tensors if "lora_A" in key)
    save_file({**tensors, name: torch.zeros(4, 99)}, wide / FILES[0])
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, alone / FILES[0])
    high = damaged(trained, tmp_path / "50", rank=50)
    for file in FILES:
        more = {
            k: torch.zeros(50, t.shape[1]) if "lora_A" in k else torch.zeros(t.shape[0], 50)
            for k, t in load_file(trained / file).items()
        }
        save_file(more, high / file)
    cases |= {"other base": wide, "above": high, "one half": alone}
    wanted = {
        "rank 0": "lora.rank: 0 is not a whole number above 0",
        "rank 3": "do not have rank 3, which bootpig.json names",
        "missing": "base_lora.safetensors",
        "cut": "is cut off",
        "other base": "trained on a base with another architecture: .* differs; use its own base",
        "above": "its rank 50 is above the width of .*, 32; train it again with a lower rank",
        "one half": "is missing or unknown",
    }
    for name, folder in cases.items():
        (problem,) = trained_problems("model", folder, source)
        assert re.search(wanted[name], problem) and "\n" not in problem, (name, problem)
        pipeline = BootPIGPipeline.from_pretrained(base)
        before = {key: tensor.clone() for key, tensor in pipeline.unet.state_dict().items()}
        with pytest.raises(ValueError, match=wanted[name].replace("is cut off", "cannot be read")):
            pipeline.load_bootpig(folder)
        assert equal(pipeline.unet.state_dict(), before)


def test_lora_weights_that_are_not_finite_are_named(
    base: Path, data: ReduceInput, trained: Path, tmp_path: Path
) -> None:
    folder = damaged(trained, tmp_path / "nan")
    tensors = load_file(folder / FILES[0])
    save_file({name: tensor.fill_(float("nan")) for name, tensor in tensors.items()}, folder / FILES[0])
    with pytest.raises(ModelError, match=r"^train.init_from: .* hold NaN or infinity"):
        train(recipe(base, init_from=str(folder)), data, tmp_path / "out")


def test_the_estimate_counts_small_checkpoints(base: Path) -> None:
    work = Workload(1, 1, SampleShape())
    full = Train(recipe(base, method="full", lora_rank=16), 0).estimate(work).stored_bytes
    unet = load_file(base / "unet/diffusion_pytorch_model.safetensors")
    for more in ({}, {"trainable": {"base": "all"}}, {"lora_targets": ["to_q", "proj_in"]}):
        config = recipe(base, **more)
        model = BootPIG.from_unet(
            BootPIGPipeline.from_pretrained(base).unet, train_base=config.trainable.base, lora=lora_of(config)
        )
        trained = sum(tensor.numel() for tensor in model.trained_state().values())
        estimated = Train(config, 0).estimate(work).stored_bytes / (4 + 12 * CHECKPOINTS_KEPT)
        # the Reference UNet ends before its last layers
        assert trained <= estimated < 1.4 * trained
        assert 4 * estimated < 0.1 * sum(4 * tensor.numel() for tensor in unet.values()) < full
    away = [Train(TrainConfig(model=name, method="lora"), 0).estimate(work).stored_bytes for name in ("a/sd", "a/xl")]
    assert 3e6 * 4 < away[0] / (1 + 3 * CHECKPOINTS_KEPT) < away[1] / (1 + 3 * CHECKPOINTS_KEPT) < 50e6 * 4


def test_the_toy_model_is_small(tmp_path: Path) -> None:
    """At rank 16, less than a tenth of the weights themselves."""
    sizes = []
    for lora in (None, Lora(16, 16, ("to_q", "to_k", "to_v", "to_out.0"))):
        unet = UNet2DConditionModel.from_pretrained(TOY / "unet")
        model = BootPIG.from_unet(unet, lora=lora)
        folder = tmp_path / str(lora is None)
        save_trained(folder, model.unet, model.reference_unet, {}, lora=lora)
        sizes.append(sum(file.stat().st_size for file in folder.rglob("*.safetensors")))
    assert sizes[1] < 0.06 * sizes[0]
