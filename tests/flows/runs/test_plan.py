"""`plan` for the shipped configs, offline and without the models."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from rich.console import Console

from bootpig.flows.loading import load_config
from bootpig.flows.runs.plan import plan, plan_table
from bootpig.models.pretrained.source import PROJECT
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import MapStage, Sample, StageConfig
from bootpig.stages.engine.estimates import Estimate, Workload
from bootpig.stages.registry import STAGES
from tests.stages import doubles

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("OPENAI_API_KEY", "never-sent")


def facts(name: str, folder: Path, *overrides: str) -> dict:
    local = (f"root={folder / 'store'}", "segment.sam=/none.pth", "segment.sam_sha256=null")
    return plan(load_config(CONFIGS / f"{name}.yaml", [*local, *overrides]))


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl-data", "sdxl", "flux2-klein", "z-image-turbo", "qwen-image"])
def test_units_hours_bytes_and_what_is_missing(name: str, tmp_path: Path) -> None:
    planned = facts(name, tmp_path)
    for stage in ("caption", "synthesize", "segment", "augment", "encode"):
        assert planned["stages"][stage]["units"] == {"total": 200, "cached": 0, "due": 200}
    for key in ("gpu_hours", "cost_usd", "bytes"):
        assert planned["total"][key] == pytest.approx(sum(stage[key] for stage in planned["stages"].values()))
    assert all(stage["bytes"] > 0 for stage in planned["stages"].values())
    refined = ["synthesize.refiner"] if name == "sdxl-data" else []
    fields = ["synthesize.model", *refined, "segment.detector", "segment.sam", "encode.model", "train.model"]
    fields += ["evaluate.clip", "evaluate.dino", "evaluate.subjects"]
    assert [problem.split(":")[0] for problem in planned["missing"]] == fields
    assert planned["assumptions"]
    assert not (tmp_path / "store").exists()


def test_figures_follow_the_operation_counts(tmp_path: Path) -> None:
    stages = facts("sd21", tmp_path)["stages"]
    hour = 0.4 * 800 * 3600  # TFLOP
    assert stages["train"]["gpu_hours"] == pytest.approx(10_000 * 64 * 4.5 / hour)
    assert stages["synthesize"]["gpu_hours"] == pytest.approx(200_000 * (50 * 2 * 0.8 + 2.5) / hour)
    assert stages["encode"]["gpu_hours"] == pytest.approx(200_000 * 5 * 1.1 / hour)
    assert stages["encode"]["bytes"] == 200_000 * 2 * (5 * 4 * 64 * 64 + 2 * 77 * 1024)
    assert stages["synthesize"]["bytes"] == 200_000 * 1.5 * 512 * 512

    xl = facts("sdxl", tmp_path)["stages"]
    assert xl["synthesize"]["gpu_hours"] == pytest.approx(200_000 * (30 * 2 * 6.76 + 4 * 2.5) / hour)
    assert xl["encode"]["bytes"] == 200_000 * 2 * (5 * 4 * 128 * 128 + 2 * (77 * 2048 + 1280))
    refined = facts("sdxl-data", tmp_path)["stages"]["synthesize"]
    assert refined["bytes"] == stages["synthesize"]["bytes"], "kept at 512 pixels"
    drawn = {name: facts(name, tmp_path)["stages"]["synthesize"] for name in ("flux2-klein", "z-image-turbo")}
    tokens = 64**2
    for name, flop in (("flux2-klein", 4 * 3.9e9), ("z-image-turbo", 8 * 6.15e9)):  # one pass a step: no guidance
        wanted = 200_000 * (2e-12 * tokens * flop + 4 * 2.5) / hour
        assert drawn[name]["gpu_hours"] == pytest.approx(wanted)
        assert drawn[name]["bytes"] == stages["synthesize"]["bytes"]
    step = 0.8 * 6.76 + 0.2 * 7.29
    assert refined["gpu_hours"] == pytest.approx(200_000 * (25 * 2 * step + 4 * 2.5) / hour)


def test_measures_cost_operations(tmp_path: Path) -> None:
    hour, pictures = 0.4 * 800 * 3600, 4 * 30 * 25 * 4  # of each of the four methods

    def hours(*overrides: str) -> float:
        return float(
            facts("sd21", tmp_path, "evaluate.images_per_prompt=4", *overrides)["stages"]["evaluate"]["gpu_hours"]
        )

    one = hours("evaluate.metrics=[clip_t]")
    assert hours("evaluate.metrics=[clip_t, clip_i]") == one, "one pass over the pictures for both"
    assert hours("evaluate.metrics=[clip_t, dino]") - one == pytest.approx(pictures * 0.01 / hour)
    masked = hours("evaluate.metrics=[clip_t, background]") - one  # SAM, the detector, CLIP again
    assert masked == pytest.approx(pictures * (6.4 + 0.03) / hour)
    assert any(line.startswith("evaluate: measures with models of") for line in facts("sd21", tmp_path)["assumptions"])


def test_several_sizes_cost_what_their_mean_number_of_pixels_costs(tmp_path: Path) -> None:
    lists = ("synthesize.sizes=[[512, 512], [448, 576], [576, 448]]",)
    square, mixed = facts("sd21", tmp_path)["stages"], facts("sd21", tmp_path, *lists)["stages"]
    share = (512**2 + 2 * 448 * 576) / 3 / 512**2
    for stage in ("synthesize", "encode", "train"):
        assert mixed[stage]["gpu_hours"] == pytest.approx(share * square[stage]["gpu_hours"])
    assert mixed["synthesize"]["bytes"] == round(share * square["synthesize"]["bytes"])


def test_captions_of_an_llm_have_their_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = facts("sd21", tmp_path)
    caption = planned["stages"]["caption"]
    llm = caption["llm"]
    assert llm["requests"] == 4000 and llm["output_tokens"] == 200_000 * 30
    assert caption["cost_usd"] == llm["cost_usd"] == (llm["input_tokens"] * 0.40 + llm["output_tokens"] * 1.60) / 1e6
    assert any("'gpt-4.1-mini', 30 tokens a caption" in line for line in planned["assumptions"])
    batched = facts("sd21", tmp_path, "caption.openai.batch=true")["stages"]["caption"]
    assert batched["cost_usd"] == caption["cost_usd"] / 2
    low = facts("sd21", tmp_path, "caption.openai.cap_usd=2")
    assert any("cap_usd 2 is less than that" in line for line in low["assumptions"])
    monkeypatch.delenv("OPENAI_API_KEY")
    missing = facts("sd21", tmp_path)["missing"]
    assert missing[0].startswith("caption.openai.api_key_env: 'OPENAI_API_KEY' → this environment variable is not set")


class Blur(StageConfig):
    """The settings of the stages below."""


class BlurConfig(PipelineConfig):
    blur: Blur = Blur()
    crop: Blur = Blur()
    weigh: Blur = Blur()


class Blurred(MapStage):
    """A stage that nobody has estimated."""

    name, upstream, config_class = "blur", ("augment",), Blur

    def process(self, samples: Sequence[Sample]) -> list[Sample]:
        raise AssertionError("a plan makes nothing")


class Cropped(Blurred):
    name, upstream = "crop", ("blur",)

    def estimate(self, work: Workload) -> Estimate:
        return Estimate(replace(work.above, pixels=work.above.pixels / 4), tflop=3600.0 * work.samples, usd=2.0)


class Weighed(Blurred):
    name, upstream = "weigh", ("crop",)

    def estimate(self, work: Workload) -> Estimate:
        return Estimate(
            work.above,
            stored_bytes=work.samples * work.above.pixels,
            details={"per_unit": work.samples / work.units},
            assumptions=("each pixel weighs a byte",),
        )


def test_a_stage_that_is_not_registered_is_planned(tmp_path: Path) -> None:
    values = doubles.config(tmp_path, augment__size=64, augment__references=3).model_dump()
    plain = plan(PipelineConfig.model_validate(values))
    known = {**STAGES, "blur": Blurred, "crop": Cropped, "weigh": Weighed}
    planned = plan(BlurConfig.model_validate(values), known)
    blur, crop, weigh = (planned["stages"][name] for name in ("blur", "crop", "weigh"))
    assert blur["units"] == {"total": 4, "cached": 0, "due": 4} and blur["samples"] == 20
    assert (blur["gpu_hours"], blur["cost_usd"], blur["bytes"]) == (0, 0, 0)
    assert crop["gpu_hours"] == pytest.approx(20 / (0.4 * 800))
    assert crop["cost_usd"] == pytest.approx(2.5 * crop["gpu_hours"] + 2)
    assert weigh["bytes"] == 20 * 32 * 32, "a stage without an estimate passes on what its samples hold"
    assert weigh["per_unit"] == 5 and "each pixel weighs a byte" in planned["assumptions"]
    for name, facts in plain["stages"].items():
        assert planned["stages"][name] == facts, "no other stage is planned differently"
    assert planned["total"]["bytes"] == plain["total"]["bytes"] + weigh["bytes"]


def test_licences_and_terms_of_the_models(tmp_path: Path) -> None:
    base = PROJECT / "models/toy/checkpoints/stable-diffusion"
    copy = tmp_path / "FLUX.1-dev"
    copy.mkdir()
    for part in base.iterdir():
        if part.name != "README.md":
            (copy / part.name).symlink_to(part)
    planned = facts("toy", tmp_path, f"synthesize.model={copy}")
    licences = planned["stages"]["synthesize"]["licences"]
    assert licences == {"model": {"model": str(copy), "licence": None}}
    assert planned["stages"]["evaluate"]["licences"]["clip"]["licence"] == "apache-2.0"
    (warning,) = planned["warnings"]
    assert warning.startswith("synthesize.model: ") and "competes with FLUX" in warning and "accept_terms" in warning
    assert facts("toy", tmp_path, f"synthesize.model={copy}", "synthesize.accept_terms=true")["warnings"] == []
    (copy / "README.md").write_text("---\nlicense: mit\n---\n")
    assert facts("toy", tmp_path, f"synthesize.model={copy}")["warnings"] == []


def test_memory_per_stage(tmp_path: Path) -> None:
    planned = facts("sd21", tmp_path, "train.per_device_batch_size=4", "train.gradient_checkpointing=true")
    memory = {name: stage["memory"] for name, stage in planned["stages"].items()}
    assert memory["train"]["basis"] == "computed" and memory["train"]["fits_gib"] == [24, 48, 80]
    assert memory["caption"] == memory["augment"] == {"bytes": 0, "basis": "no device", "fits_gib": [16, 24, 48, 80]}
    assert memory["segment"] == {"bytes": None, "basis": "unknown", "fits_gib": []}
    for name in ("synthesize", "encode", "evaluate"):
        assert memory[name]["basis"] == "estimated" and 2**30 < memory[name]["bytes"] < 80 * 2**30
    assert any(line.startswith("train: memory of 4 samples at once") for line in planned["assumptions"])
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_table(planned))
    assert "→ 24 GB" in console.export_text()
