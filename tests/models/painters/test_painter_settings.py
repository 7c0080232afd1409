"""Settings that do not fit a family or would have no effect are named before any work, from configs alone."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest

from bootpig.flows.loading import load_config, shipped_configs
from bootpig.models.painters.checks import painter_problems
from bootpig.models.painters.costs import step_tflop
from bootpig.models.painters.families import BY_CLASS, FAMILIES
from bootpig.models.painters.loading import scheduler_problem
from bootpig.models.painters.painter import Brush, family_of, setting_problems
from bootpig.models.pretrained.source import ModelError, ModelSource

KL = {"_class_name": "AutoencoderKL", "block_out_channels": [1, 1, 1, 1]}
DEV, SCHNELL = {"guidance_embeds": True}, {"guidance_embeds": False}
SOURCE = ModelSource("synthesize.model", "some/model", "some/model")


def brush(**changes: Any) -> Brush:
    usual = {"steps": 2, "guidance_scale": 7.5, "negative_prompt": "", "height": 1024, "width": 1024}
    return Brush(**{**usual, **changes})


def problems(name: str, configs: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    found = {"": {}, "vae": KL, **(configs or {})}
    return setting_problems("synthesize.model", getattr(diffusers, name), found, brush(**changes))


@pytest.mark.parametrize("name", list(BY_CLASS))
def test_every_class_is_diffusers_and_takes_what_it_is_given(name: str) -> None:
    family, parameters = BY_CLASS[name], inspect.signature(getattr(diffusers, name).__call__).parameters
    if "args" in parameters:  # Kolors needs a package that is not here
        pytest.skip(f"{name} cannot be imported here")
    for argument in ("prompt", "height", "width", "num_inference_steps", "generator", "output_type", family.guidance):
        assert argument in parameters
    assert set(family.fixed({})) <= set(parameters)
    if family.negated({"": {"guider": ["diffusers", "x"]}}):
        assert "negative_prompt" in parameters
    assert problems(name) == [], "the usual settings fit every family"


@pytest.mark.parametrize(
    ("name", "configs", "changes", "said"),
    [
        ("FluxPipeline", {"transformer": DEV}, {"negative_prompt": "x"}, "negative_prompt: has no effect on this Flux"),
        ("FluxPipeline", {"transformer": SCHNELL}, {"guidance_scale": 3.5}, "guidance_scale: 3.5 has no effect on"),
        ("Flux2Pipeline", {"transformer": DEV}, {"negative_prompt": "x"}, "negative_prompt: has no effect"),
        (
            "Flux2KleinPipeline",
            {"": {"is_distilled": True}},
            {"guidance_scale": 4.0},
            "guidance_scale: 4 has no",
        ),
        ("LatentConsistencyModelPipeline", {}, {"negative_prompt": "x"}, "negative_prompt: has no effect"),
        (
            "StableDiffusionPipeline",
            {"unet": {"time_cond_proj_dim": 256}},
            {"negative_prompt": "x"},
            "negative_prompt: has no effect on this StableDiffusionPipeline; remove it",
        ),
        (
            "StableDiffusionXLPipeline",
            {},
            {"negative_prompt": "x", "guidance_scale": 1.0},
            "negative_prompt: has no effect at guidance_scale 1; remove it, or raise guidance_scale above 1",
        ),
        (
            "ZImagePipeline",
            {},
            {"negative_prompt": "x", "guidance_scale": 0.0},
            "negative_prompt: has no effect at guidance_scale 0",
        ),
        ("HunyuanImagePipeline", {"transformer": DEV}, {"negative_prompt": "x"}, "negative_prompt: has no effect"),
        ("OmniGenPipeline", {}, {"negative_prompt": "x"}, "negative_prompt: has no effect"),
        (
            "FluxPipeline",
            {"transformer": DEV},
            {"height": 72, "width": 88},
            "width and height: 88x72, but a FluxPipeline draws multiples of 16; the nearest size is 96x64",
        ),
        ("SanaPipeline", {}, {"height": 1000}, "width and height: 1024x1000, but a SanaPipeline draws multiples of 32"),
        (
            "HunyuanImagePipeline",
            {"vae": {"spatial_compression_ratio": 32}, "transformer": DEV},
            {"height": 1056},
            "multiples of 64; the nearest size is 1024x1024",
        ),
        (
            "Kandinsky5T2IPipeline",
            {},
            {"height": 512, "width": 512},
            "width and height: 512x512, but a Kandinsky5T2IPipeline draws only 1024x1024, 640x1408",
        ),
        ("StableDiffusion3Pipeline", {"transformer": {"patch_size": 2}}, {"height": 1000}, "multiples of 16"),
        ("Krea2Pipeline", {"transformer": {"patch_size": 2}}, {"width": 1000}, "multiples of 16"),
    ],
)
def test_a_setting_without_effect_or_fit_is_one_line(
    name: str, configs: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    (line,) = problems(name, configs, **changes)
    assert line.startswith("synthesize.")
    assert said in line


@pytest.mark.parametrize(
    ("name", "configs", "changes"),
    [
        ("QwenImagePipeline", {}, {"negative_prompt": "x", "guidance_scale": 4.0}),
        ("FluxPipeline", {"transformer": DEV}, {"guidance_scale": 3.5}),
        ("FluxPipeline", {"transformer": SCHNELL}, {}),
        ("Flux2KleinPipeline", {"": {"is_distilled": False}}, {"guidance_scale": 4.0}),
        ("ZImagePipeline", {}, {"guidance_scale": 0.5, "negative_prompt": "x"}),
        ("HunyuanImagePipeline", {"": {"guider": ["diffusers", "X"]}}, {"negative_prompt": "x"}),
        ("StableDiffusionPipeline", {}, {"height": 72, "width": 88}),
        ("PixArtSigmaPipeline", {"transformer": {"sample_size": 128, "patch_size": 2}}, {"height": 1000}),
        ("Kandinsky5T2IPipeline", {}, {"height": 640, "width": 1408}),
    ],
)
def test_what_acts_is_accepted(name: str, configs: dict[str, Any], changes: dict[str, Any]) -> None:
    assert problems(name, configs, **changes) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("StableDiffusionImg2ImgPipeline", "needs image besides a caption"),
        ("StableDiffusionInpaintPipeline", "needs image besides a caption"),
        ("StableDiffusionControlNetPipeline", "needs image besides a caption"),
        ("QwenImageEditPipeline", "needs image besides a caption"),
        ("DiTPipeline", "needs class_labels besides a caption"),
        ("WanPipeline", "draws no pictures (it has num_frames)"),
        ("AudioLDM2Pipeline", "draws no pictures (it has audio_length_in_s)"),
        ("DDPMPipeline", "takes no prompt"),
    ],
)
def test_another_pipeline_is_refused_with_the_reason(name: str, said: str) -> None:
    (line,) = problems(name)
    assert line == f"synthesize.model: a {name} {said}; give a text-to-image pipeline (docs/models.md lists them)"
    with pytest.raises(ModelError, match="give a text-to-image pipeline"):
        family_of("synthesize.model", getattr(diffusers, name))


@pytest.mark.parametrize("name", ["HiDreamImagePipeline", "PRXPipeline", "Kandinsky3Pipeline", "IFPipeline"])
def test_a_text_to_image_pipeline_that_is_not_known_is_called_by_its_signature(name: str) -> None:
    family = family_of("synthesize.model", getattr(diffusers, name))
    assert family.name == name
    assert not family.batches, "a picture may depend on the others in a call"
    assert family.guidance == "guidance_scale"


def test_schedulers_for_another_kind_of_noise_are_refused() -> None:
    ddim, flow = diffusers.DDIMScheduler, diffusers.FlowMatchEulerDiscreteScheduler
    for name in (
        "UniPCMultistepScheduler",
        "LCMScheduler",
        "TCDScheduler",
        "DDIMParallelScheduler",
        "DEISMultistepScheduler",
    ):
        assert scheduler_problem(SOURCE, ddim, name) is None
    assert scheduler_problem(SOURCE, flow, "FlowMatchHeunDiscreteScheduler") is None
    for own, name in (
        (ddim, flow.__name__),
        (flow, "DDIMScheduler"),
        (ddim, "EDMEulerScheduler"),
        (ddim, "IPNDMScheduler"),
    ):
        line = scheduler_problem(SOURCE, own, name)
        assert line is not None
        assert line.startswith(
            f"synthesize.model: the scheduler {name!r} is for another kind of noise than the model's"
        )
    line = scheduler_problem(SOURCE, ddim, "DPMSolverSDEScheduler")
    assert line is not None
    assert "needs more packages: " in line or "draws noise that a sample's seed does not decide" in line
    line = scheduler_problem(SOURCE, flow, "FlowMatchLCMScheduler")
    assert line is not None
    assert "draws noise that a sample's seed does not decide" in line
    line = scheduler_problem(SOURCE, ddim, "NoSuchScheduler")
    assert line is not None
    assert line.startswith(
        "synthesize.model: diffusers has no scheduler 'NoSuchScheduler'; choose one of DDIMScheduler"
    )


def write(folder: Path, name: str, **configs: Any) -> ModelSource:
    folder.mkdir()
    index: dict[str, Any] = {"_class_name": name, "scheduler": ["diffusers", "DDIMScheduler"]}
    for part, config in configs.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
        index[part] = ["diffusers", "X"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return ModelSource("synthesize.model", str(folder), str(folder))


def test_it_is_read_from_the_folder(tmp_path: Path) -> None:
    flux = write(tmp_path / "flux", "FluxPipeline", vae=KL, transformer=SCHNELL)
    assert painter_problems(flux, brush()) == []
    found = painter_problems(
        flux, brush(guidance_scale=2.0, height=72), scheduler="FlowMatchEulerDiscreteScheduler", refiner=flux
    )
    assert [line.split(":")[0] for line in found] == [
        "synthesize.guidance_scale",
        "synthesize.width and height",
        "synthesize.model",
        "synthesize.model",
        "synthesize.model",
    ]
    assert "cannot stop midway" in found[3]
    listed = painter_problems(flux, brush(), sizes=[(64, 64), (72, 64), (64, 88)])
    assert [line.split("; ")[1] for line in listed] == ["the nearest size is [64, 64]", "the nearest size is [64, 96]"]
    assert listed[0].startswith("synthesize.sizes: [72, 64], but a FluxPipeline draws multiples of 16")
    assert "cannot start midway" in found[4]
    (tmp_path / "flux" / "model_index.json").write_text("{")
    assert painter_problems(flux, brush()) == [], "damaged files are another check's"
    hub = ModelSource("synthesize.model", "some/model", "some/model", revision="c" * 40)
    assert painter_problems(hub, brush()) == [], "what is not here is checked after its download"


def test_the_cost_of_a_step_follows_the_weights_and_the_passes(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F16", "shape": [1000, 1000], "data_offsets": [0, 2000000]}}).encode()
    source = write(tmp_path / "flux", "FluxPipeline", vae=KL, transformer=DEV)
    (tmp_path / "flux" / "transformer" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    once = step_tflop(source.path, 1024**2, 1.0)
    assert once == pytest.approx(2e-12 * 1e6 * 64**2)
    assert step_tflop(source.path, 1024**2, 3.5) == once, "guidance is an input of FLUX.1"
    index = tmp_path / "flux" / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "ChromaPipeline"))
    assert step_tflop(source.path, 1024**2, 3.5) == 2 * once


def test_every_family_is_listed_once() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert len(BY_CLASS) == sum(len(family.classes) for family in FAMILIES)


@pytest.mark.parametrize(
    ("name", "pipeline", "configs"),
    [
        ("flux2-klein", "Flux2KleinPipeline", {"": {"is_distilled": True}}),
        ("z-image-turbo", "ZImagePipeline", {}),
        ("qwen-image", "QwenImagePipeline", {}),
    ],
)
def test_the_shipped_configs_suit_their_painters(name: str, pipeline: str, configs: dict[str, Any]) -> None:
    c = load_config(shipped_configs()[name]).synthesize
    settings = {key: getattr(c, key) for key in ("steps", "guidance_scale", "negative_prompt", "height", "width")}
    assert problems(pipeline, configs, **settings) == []
