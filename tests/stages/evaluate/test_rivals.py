"""Rivals draw the same captions as our own methods: random models of the real classes, checked, cached and resumed."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from pydantic import ValidationError

import bootpig.stages.engine.loaded
from bootpig.flows.loading import load_config, shipped_configs
from bootpig.models.pipelines.sd import BootPIGPipeline
from bootpig.models.pretrained.source import ModelError
from bootpig.stages.engine.engine import Engine
from bootpig.stages.evaluate.drawing import METHODS, drawings
from bootpig.stages.evaluate.rivals.config import RivalConfig
from bootpig.stages.evaluate.rivals.models import rivals_of
from bootpig.stages.evaluate.rivals.painters import RivalPainter, Settings
from bootpig.stages.evaluate.stage import Evaluate, EvaluateConfig
from bootpig.stages.evaluate.subjects import Subject, read_subjects
from tests.models.families import save_sdxl
from tests.stages.evaluate.rival_models import (
    TOKEN,
    save_dreambooth,
    save_embedding,
    save_ip_adapter,
    save_kontext,
    save_lora,
)
from tests.stages.evaluate.world import engine, evaluate_config, make_world

SUBJECTS = 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    folder = make_world(tmp_path_factory.mktemp("world"), SUBJECTS)
    base = folder / "base"
    save_ip_adapter(folder / "adapter" / "models", base)
    save_kontext(folder / "kontext")
    for number, name in enumerate(names(folder)):
        save_dreambooth(folder / "dreambooth" / name, base, number)
        save_lora(folder / "lora" / name, base, number)
        save_embedding(folder / "learned" / name, number)
    yield folder
    bootpig.stages.engine.loaded.release()


def names(world: Path) -> list[str]:
    return sorted(path.name for path in (world / "subjects").iterdir() if path.is_dir())


def rivals(world: Path) -> dict[str, dict[str, Any]]:
    base = str(world / "base")
    return {
        "adapter": {"model": base, "ip_adapter": str(world / "adapter"), "subfolder": "models", "scale": 0.8},
        "kontext": {"model": str(world / "kontext" / "pipeline"), "steps": 1, "size": 32},
        "dreambooth": {"model": str(world / "dreambooth" / "{subject}"), "prompt": "a sks {class}"},
        "lora": {"base": base, "lora": str(world / "lora" / "{subject}"), "prompt": "a sks {class}"},
        "learned": {
            "base": base,
            "textual_inversion": str(world / "learned" / "{subject}" / "learned_embeds.safetensors"),
            "token": TOKEN,
        },
    }


def rival(world: Path, kind: str, **changes: Any) -> RivalConfig:
    return RivalConfig(name=kind, **{**rivals(world)[kind], **changes})


def subjects_of(world: Path) -> list[Subject]:
    return read_subjects(world / "subjects", (), 1)


def painter(world: Path, kind: str, **changes: Any) -> RivalPainter:
    subjects = subjects_of(world)
    (found,) = rivals_of([rival(world, kind, **changes)])
    pictures = {each.name: [Image.open(each.references[0]).convert("RGB")] for each in subjects}
    settings = Settings(2, 7.5, torch.float32, torch.device("cpu"), 4, found.config.size)
    return RivalPainter(found, found.sources(subjects), pictures, settings)


def draw(made: RivalPainter, rows: Any) -> list[np.ndarray]:
    return [np.asarray(picture, int) for batch in made.draw(rows) for picture in batch]


@pytest.mark.parametrize("kind", ["adapter", "kontext", "dreambooth", "lora", "learned"])
def test_a_picture_depends_on_its_own_subject_alone(world: Path, kind: str) -> None:
    rows = [row for row in drawings(subjects_of(world), 1, 0) if row.file.endswith("-00-00.png")]
    made = painter(world, kind)
    first, second = draw(made, rows)
    assert (first != second).any()
    (alone,) = draw(painter(world, kind), rows[1:])
    assert np.abs(alone - second).max() <= 1, "what was loaded for the first subject is gone"
    (again,) = draw(made, rows[:1])
    assert np.abs(again - first).max() <= 1


def test_a_fine_tuned_model_is_plain_diffusers_from_the_noise_of_our_methods(world: Path) -> None:
    (row, *_) = drawings(subjects_of(world), 1, 0)
    (drawn,) = draw(painter(world, "dreambooth"), [row])
    plain = StableDiffusionPipeline.from_pretrained(world / "dreambooth" / row.subject.name, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(row.seed))
    prompt = row.prompt.replace(f"a {row.subject.object}", f"a sks {row.subject.object}")
    assert prompt != row.prompt
    expected = plain(prompt, num_inference_steps=2, guidance_scale=7.5, latents=noise).images[0]
    assert np.abs(drawn - np.asarray(expected, int)).max() <= 1


def test_the_reference_and_the_scale_of_an_ip_adapter_act(world: Path) -> None:
    (row, *_) = drawings(subjects_of(world), 1, 0)
    (first,) = draw(painter(world, "adapter"), [row])
    (other,) = draw(painter(world, "adapter", scale=0.1), [row])
    assert (first != other).any()
    (none,) = draw(painter(world, "adapter", scale=0.0), [row])
    plain = StableDiffusionPipeline.from_pretrained(world / "base", safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(row.seed))
    expected = plain(row.prompt, num_inference_steps=2, guidance_scale=7.5, latents=noise).images[0]
    assert np.abs(none - np.asarray(expected, int)).max() <= 1


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Number of captions that each class of pipeline draws from now on."""
    counts: dict[str, int] = {}
    for kind in (BootPIGPipeline, StableDiffusionPipeline):
        real = kind.__call__

        def counted(self: Any, *args: Any, real: Callable[..., Any] = real, **options: Any) -> Any:
            prompt = options["prompt"]
            counts[type(self).__name__] = counts.get(type(self).__name__, 0) + len(prompt)
            return real(self, *args, **options)

        counted.__signature__ = inspect.signature(real)  # type: ignore[attr-defined]
        monkeypatch.setattr(kind, "__call__", counted)
    return counts


def files(work: Engine) -> dict[str, bytes]:
    published = work.survey("evaluate").result
    assert published is not None
    return {name: work.root.read(f"{published.path}/{name}") for name in published.files}


def test_a_further_rival_draws_only_its_own_pictures(world: Path, calls: dict[str, int], tmp_path: Path) -> None:
    count = len(drawings(subjects_of(world), 1, 0))
    first = engine(world, tmp_path)
    assert first.run_reduce("evaluate").state == "done"
    assert calls == {"BootPIGPipeline": len(METHODS) * count}
    calls.clear()
    with_one = engine(world, tmp_path, rivals=(rival(world, "lora"),))
    report = with_one.run_reduce("evaluate")
    assert report.state == "done", report.message
    assert calls == {"StableDiffusionPipeline": count}
    calls.clear()

    def stop(done: int, total: int, text: str) -> None:
        assert total == (len(METHODS) + 2) * count
        if done >= (len(METHODS) + 1) * count + 4:
            raise RuntimeError("the power went")

    both = engine(world, tmp_path, rivals=(rival(world, "lora"), rival(world, "dreambooth")), batch_size=4)
    if count > 3:
        assert both.run_reduce("evaluate", progress=stop).state == "failed"
    drawn = calls.get("StableDiffusionPipeline", 0)
    assert both.run_reduce("evaluate").state == "done"
    assert calls == {"StableDiffusionPipeline": max(drawn, count)}, "neither ours, nor the other rival, nor twice"

    old, new = files(first), files(both)
    assert all(new[name] == data for name, data in old.items() if name.startswith("images/"))
    metrics = json.loads(new["metrics.json"])
    assert list(metrics["methods"])[:6] == [*METHODS, "lora", "dreambooth"]
    (tmp_path / "scores.parquet").write_bytes(new["scores.parquet"])
    table = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    ours = [(row["prompt"], row["seed"]) for row in table if row["method"] == "bootpig"]
    assert [(row["prompt"], row["seed"]) for row in table if row["method"] == "dreambooth"] == ours
    assert all(row["file"] in new for row in table)
    calls.clear()
    assert both.run_reduce("evaluate", force=True).state == "done"
    assert calls["BootPIGPipeline"] == len(METHODS) * count, "force draws everything"


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"guidance_scale": 3.0}, len(METHODS)),
        ({"reference_guidance_scale": 3.0}, 2),  # those that see the reference
        ({"model": "other"}, 2),  # those with the trained weights
        ({"model": "other reading"}, 3),
    ],
)
def test_a_method_is_drawn_again_only_if_what_it_depends_on_changes(
    world: Path, calls: dict[str, int], tmp_path: Path, change: dict[str, Any], again: int
) -> None:
    count = len(drawings(subjects_of(world), 1, 0))
    assert engine(world, tmp_path / "root").run_reduce("evaluate").state == "done"
    calls.clear()
    changed = shutil.copytree(world, tmp_path / "world")
    settings = dict(change)
    if (model := settings.pop("model", None)) is not None:
        file = changed / "result" / "model" / "bootpig.json"
        more = {"note": "other weights"} if model == "other" else {"reference_timestep": "zero"}
        file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
    second = engine(changed, tmp_path / "root", **settings)
    assert second.run_reduce("evaluate").state == "done"
    assert calls == {"BootPIGPipeline": again * count}
    calls.clear()
    reused = files(second)
    assert engine(changed, tmp_path / "root", **settings).run_reduce("evaluate", force=True).state == "done"
    assert calls == {"BootPIGPipeline": len(METHODS) * count}
    assert files(second) == reused, "as if all were drawn again"


def lines(world: Path, *given: dict[str, Any]) -> list[str]:
    """What preflight says about these rivals."""
    stage = Evaluate(evaluate_config(world, rivals=given), seed=0)
    try:
        stage.models()
    except ModelError as error:
        return str(error).splitlines()
    return stage.check_models()


def test_all_kinds_pass_the_checks(world: Path) -> None:
    assert lines(world, *({"name": kind, **values} for kind, values in rivals(world).items())) == []


def test_what_cannot_be_drawn_is_one_line_before_any_work(world: Path, tmp_path: Path) -> None:
    known, (first, second) = rivals(world), names(world)

    def said(kind: str, **changes: Any) -> str:
        (line,) = lines(world, {"name": "It", **known[kind], **changes})
        assert line.startswith("evaluate.rivals.It."), line
        return line

    shutil.copytree(world / "dreambooth" / first, tmp_path / "one" / first)
    missing = said("dreambooth", model=str(tmp_path / "one" / "{subject}"))
    assert f"does not exist for 1 of 2 subjects: {second}; train them" in missing
    assert "for 2 of 2 subjects" in said("lora", lora=str(tmp_path / "none" / "{subject}"))
    assert "does not take image" in said("adapter", ip_adapter=None, subfolder=None, scale=None)
    assert "takes no IP-Adapter" in said("adapter", model=known["kontext"]["model"])
    assert "set weight_name, and subfolder" in said("adapter", subfolder=None)
    assert "has no folder nowhere" in said("adapter", subfolder="nowhere")
    assert "has no other.bin; it has ip-adapter.safetensors" in said("adapter", weight_name="other.bin")
    assert "its CLIP image encoder is not in" in said("adapter", image_encoder="elsewhere")
    assert "does not exist" in said("adapter", ip_adapter=str(tmp_path / "gone"))
    assert "does not exist" in said("learned", base=str(tmp_path / "gone"))

    xl = save_sdxl(tmp_path / "xl")
    assert "was made for another base" in said("adapter", model=str(xl))
    narrow = save_ip_adapter(tmp_path / "narrow", world / "base", vision=4)
    assert "needs an image encoder of width 8, not 4" in said("adapter", ip_adapter=str(narrow), subfolder=None)
    for name in (first, second):
        save_lora(tmp_path / "xl-lora" / name, xl, 0)
        save_embedding(tmp_path / "wide" / name, 0, width=64)
        (tmp_path / "pickled" / name).mkdir(parents=True)
        (tmp_path / "pickled" / name / "learned_embeds.bin").write_bytes(b"pickle")
    found = lines(world, {"name": "It", **known["lora"], "lora": str(tmp_path / "xl-lora" / "{subject}")})
    assert len(found) == 2 and all("was made for another base" in line for line in found)
    path = str(tmp_path / "wide" / "{subject}")
    (line, _) = lines(world, {"name": "It", **known["learned"], "textual_inversion": path})
    assert "an embedding of 64 numbers where this one has 32" in line
    path = str(tmp_path / "pickled" / "{subject}" / "learned_embeds.bin")
    (line, _) = lines(world, {"name": "It", **known["learned"], "textual_inversion": path})
    assert "is not safetensors; convert it" in line
    (line,) = lines(world, {"name": "It", **known["learned"], "token": "mug</w>"})
    assert "is a word of the base already" in line
    (line, _) = lines(world, {"name": "It", **known["lora"], "lora": str(world / "learned" / "{subject}")})
    assert "holds no LoRA" in line


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": "m/{subject}"}, "It.prompt: missing"),
        ({}, "needs model, or base"),
        ({"model": "m", "base": "b", "lora": "{subject}", "prompt": "a sks {class}"}, "give one of the two"),
        ({"base": "b"}, "needs lora or textual_inversion"),
        ({"base": "b", "lora": "l", "prompt": "a sks {class}"}, "has no {subject}"),
        ({"base": "b", "textual_inversion": "{subject}"}, "belong together"),
        ({"base": "b", "textual_inversion": "{subject}", "token": "<t>", "prompt": "a {class}"}, "has no {token}"),
        ({"model": "m/{subject}", "prompt": "a sks {object}"}, "only {class} is replaced"),
        ({"model": "m/{subject}", "prompt": "a sks {class"}, "write {{ and }}"),
        ({"model": "m/{name}"}, "only {subject} is replaced"),
        ({"model": "m", "scale": 0.5}, "has no effect without ip_adapter"),
        ({"model": "m/{subject}", "prompt": "a {class}", "ip_adapter": "i"}, "one Stable Diffusion for all"),
        ({"model": "m", "name": "a/b"}, "pattern"),
        ({"model": "m", "name": "BootPIG"}, "give it another name"),
    ],
)
def test_settings_that_do_not_fit_together(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        EvaluateConfig(subjects="s", rivals=({"name": "It", **values},))
    assert said in str(raised.value)


def test_rivals_change_the_fingerprint_and_none_does_not(world: Path) -> None:
    plain = evaluate_config(world).hashed()
    assert "rivals" not in plain and "benchmark" not in plain and "segment" not in plain
    hashed = evaluate_config(world, rivals=(rival(world, "dreambooth"),)).hashed()
    assert hashed["rivals"][0]["prompt"] == "a sks {class}" and "model" not in hashed["rivals"][0]
    sources = Evaluate(evaluate_config(world, rivals=(rival(world, "dreambooth"),)), seed=0).models()
    assert {name for name in sources if name.startswith("rivals.")} == {f"rivals.0.model.{n}" for n in names(world)}


def test_revisions_of_rivals_are_pinned() -> None:
    config = load_config(shipped_configs()["toy"])
    two = (RivalConfig(name="A", model="some/editor"), RivalConfig(name="B", model="some/sd", ip_adapter="some/ip"))
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"rivals": two})})
    pins = {"rivals.1.revision": "1" * 40, "rivals.1.ip_adapter_revision": "2" * 40}
    first, second = config.pinned({"evaluate": pins}).evaluate.rivals
    assert first == two[0]
    assert (second.revision, second.ip_adapter_revision) == ("1" * 40, "2" * 40)
