"""The other methods' trainers on the toy checkpoints: what they write is what diffusers loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPModel

from bootpig.models.pretrained.embedders import ClipEmbedder
from bootpig.models.toy.subject_folder import FOLDER
from bootpig.stages.evaluate.drawing import drawings
from bootpig.stages.evaluate.prompts import fill
from bootpig.stages.evaluate.rivals.models import Rival
from bootpig.stages.evaluate.subjects import Subject, read_subjects
from science import dreambooth, ip_adapter, textual_inversion, tune
from science.per_subject import Base
from science.recipes import BASE, CLIP, CLIP_JUDGE, Recipe
from science.subjects import PICTURES, REFERENCES, captioned, whole_picture, write_folder
from science.tune import Judge, draw_rival, rival_config

RECIPE = Recipe(2, 1e-3, 4.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("science") / "subjects"
    write_folder(made, FOLDER, 0)
    return made


@pytest.fixture(scope="module")
def subjects(folder: Path) -> list[Subject]:
    return read_subjects(folder, (), REFERENCES, compared=PICTURES)[:2]


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Base:
    monkeypatch.setattr(tune, "STEPS", 2)
    monkeypatch.setattr(dreambooth, "PRIOR_PICTURES", 16)
    monkeypatch.setattr(dreambooth, "PRIOR_STEPS", 1)
    return Base.load(BASE)


def pipeline(folder: str | Path = BASE) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)


def draw(pipe: StableDiffusionPipeline, prompt: str = "A photo of a sks ball", **more: object) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=2, generator=generator, output_type="np", **more).images


def test_references_are_cut_outs_whose_pictures_are_whole(folder: Path) -> None:
    for subject in read_subjects(folder, (), REFERENCES, compared=PICTURES):
        assert [path.name for path in subject.real] == [f"{number:02d}.png" for number in range(5, 10)]
        scenes = {subject.captions[path.name].partition(",")[2] for path in subject.real}
        assert not scenes & {prompt.partition(",")[2] for prompt in subject.prompts}
    cut_out = folder / "ball-0" / "02.png"
    with Image.open(cut_out) as picture:
        alpha = np.asarray(picture)[..., 3]
    assert {0, 255} == set(np.unique(alpha))
    assert np.ptp(np.asarray(whole_picture(cut_out))[alpha == 0]) > 50
    shipped, copied = FOLDER / "ball-0" / "03.png", folder / "ball-0" / "07.png"
    assert shipped.read_bytes() == copied.read_bytes()


def test_full_dreambooth_is_a_pipeline_and_starts_from_the_base_each_time(base: Base, subjects, tmp_path: Path) -> None:
    dreambooth.train(base, subjects, tmp_path / "both", RECIPE)
    dreambooth.train(base, subjects[1:], tmp_path / "alone", RECIPE)
    pipes = [pipeline(tmp_path / name / subjects[1].name) for name in ("both", "alone")]
    for network in ("unet", "text_encoder"):
        both, alone = (getattr(pipe, network).state_dict() for pipe in pipes)
        assert all(torch.equal(both[name], alone[name]) for name in both)
        plain = getattr(base.pipeline, network).state_dict()
        assert any(not torch.equal(plain[name].half(), both[name].half()) for name in plain)


def test_without_prior_preservation_no_picture_of_the_class_is_drawn(
    base: Base, subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_prior, without = replace(RECIPE, prior_loss_weight=1.0), replace(RECIPE, prior_loss_weight=0.0)
    dreambooth.train(base, subjects[:1], tmp_path / "with", with_prior)
    monkeypatch.setattr(dreambooth, "prior", None)
    dreambooth.train(base, subjects[:1], tmp_path / "without", without)
    one, other = (pipeline(tmp_path / name / subjects[0].name).unet.state_dict() for name in ("with", "without"))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    records = [
        json.loads((tmp_path / name / subjects[0].name / "training.json").read_text()) for name in ("with", "without")
    ]
    assert records[0]["prior_cpu_seconds"] > 0 == records[1]["prior_cpu_seconds"]


def test_lora_loads_in_diffusers(base: Base, subjects, tmp_path: Path) -> None:
    dreambooth.train(base, subjects, tmp_path / "both", RECIPE, lora=True)
    dreambooth.train(base, subjects[1:], tmp_path / "alone", RECIPE, lora=True)
    both, alone = (
        load_file(tmp_path / name / subjects[1].name / "pytorch_lora_weights.safetensors") for name in ("both", "alone")
    )
    assert both.keys() == alone.keys()
    assert all(torch.equal(both[name], alone[name]) for name in both)
    assert not any("lora" in name for name, _ in base.pipeline.unet.named_parameters())
    assert not any("lora" in name for name, _ in base.pipeline.text_encoder.named_parameters())
    pipe = pipeline()
    before, read = draw(pipe), Base(pipe, base.schedule).embeds(["A photo of x ball"])
    pipe.load_lora_weights(tmp_path / "both" / subjects[1].name)
    assert np.abs(draw(pipe) - before).max() > 1e-4
    assert (Base(pipe, base.schedule).embeds(["A photo of x ball"]) - read).abs().max() > 1e-4


def test_no_phrase_moves_the_other_words_of_a_prompt(subjects) -> None:
    """The text encoder knows words only at the places that they have in captions."""
    tokenizer = pipeline().tokenizer
    for method in ("dreambooth", "dreambooth-lora", "textual-inversion"):
        config = rival_config(method, Path("models"), RECIPE)
        if config.token is not None:
            tokenizer.add_tokens(config.token)
        for subject in subjects:
            for plain, own in zip(subject.prompts, Rival(config, 0).prompts(subject), strict=True):
                assert plain != own
                before, after = (tokenizer(text).input_ids for text in (plain, own))
                assert len(before) == len(after)
                assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def test_pictures_are_trained_on_with_their_own_captions(base: Base, folder: Path, subjects) -> None:
    for subject in subjects:
        known = captioned(subject)
        assert [path.name for path, _ in known] == ["01.png", "02.png", "03.png", "04.png"]
        assert not {place(text) for _, text in known} & {place(prompt) for prompt in subject.prompts}
        pictures = base.pictures(subject)
        assert all("{object}" in text for text in pictures.captions)
        clip, shown = ClipEmbedder(CLIP_JUDGE), [whole_picture(path) for path, _ in known]
        shown += [ImageOps.mirror(picture) for picture in shown]
        likeness = clip.images(shown) @ clip.texts([fill(text, subject.object) for text in pictures.captions]).T
        assert (likeness.diagonal() >= likeness.max(axis=1) - 1e-3).all()


def place(text: str) -> str:
    return text.partition(",")[2]


def test_a_token_is_learned_alone(base: Base, subjects, tmp_path: Path) -> None:
    textual_inversion.train(base, subjects, tmp_path, RECIPE)
    pipe = pipeline()
    before = pipe.text_encoder.get_input_embeddings().weight.clone()
    file = tmp_path / subjects[0].name / textual_inversion.FILE
    pipe.load_textual_inversion(file, token=textual_inversion.TOKEN)
    after = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(after[: len(before)], before)
    words = pipe.tokenizer(subjects[0].object, add_special_tokens=False).input_ids
    moved = after[-1] - before[words].mean(0)
    assert 0 < moved.abs().max() < 0.01  # two updates from the class
    assert pipe.tokenizer("a <sks>").input_ids[2] == len(before)


def test_a_subject_is_trained_once_unless_its_recipe_changes(base: Base, subjects, tmp_path: Path) -> None:
    textual_inversion.train(base, subjects[:1], tmp_path, RECIPE)
    file = tmp_path / subjects[0].name / textual_inversion.FILE
    made = file.stat().st_mtime_ns, file.read_bytes()
    textual_inversion.train(base, subjects[:1], tmp_path, replace(RECIPE, guidance_scale=7.0))
    assert (file.stat().st_mtime_ns, file.read_bytes()) == made
    (tmp_path / f"{subjects[0].name}.partial").mkdir()  # of a call that was killed
    textual_inversion.train(base, subjects[:1], tmp_path, replace(RECIPE, updates=3))
    record = json.loads((file.parent / "training.json").read_text())
    assert record["recipe"] == {"updates": 3, "learning_rate": 1e-3}
    assert record["cpu_seconds"] > 0
    assert file.read_bytes() != made[1]
    textual_inversion.train(base, subjects[:1], tmp_path, RECIPE)
    assert file.read_bytes() == made[1]  # the same seed gives the same bytes


def test_the_image_encoder_reads_pictures_of_clips_own_processor() -> None:
    picture = [Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))]
    plain = CLIPModel.from_pretrained(CLIP, dtype=torch.float32).eval().vision_model
    own = CLIPImageProcessor.from_pretrained(CLIP)(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = plain(own, output_hidden_states=True).hidden_states[-2]
    found = ip_adapter.picture_features(ip_adapter.image_encoder(CLIP), picture)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["dreambooth", "dreambooth-lora", "textual-inversion"])
def test_evaluate_draws_with_what_was_trained(base: Base, subjects, tmp_path: Path, method: str) -> None:
    if method == "textual-inversion":
        textual_inversion.train(base, subjects, tmp_path, RECIPE)
    else:
        dreambooth.train(base, subjects, tmp_path, RECIPE, lora=method == "dreambooth-lora")
    rows = drawings(subjects, 1, 0)
    pictures = draw_rival(rival_config(method, tmp_path, RECIPE), subjects, rows)
    assert len(pictures) == len(rows)
    scores = Judge(subjects)(rows, pictures)
    assert -1 <= scores["dino"] <= 1
    assert -1 <= scores["clip_t"] <= 1


def test_an_ip_adapter_loads_in_diffusers_as_it_was_trained(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    trained, encoder = pipeline(), ip_adapter.image_encoder(CLIP)
    projection, processors = ip_adapter.install(trained.unet, encoder)
    save_file(ip_adapter.file_format(projection, processors), tmp_path / ip_adapter.FILE)
    encoder.save_pretrained(tmp_path / "image_encoder")
    loaded = pipeline()
    loaded.load_ip_adapter(tmp_path, subfolder="", weight_name=ip_adapter.FILE)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    features = ip_adapter.picture_features(encoder, [picture])[:, None]
    embeds, steps = torch.randn(1, 24, trained.unet.config.cross_attention_dim), torch.tensor([500])
    noisy = torch.randn(1, 16, 8, 8)

    def predicted(unet: torch.nn.Module, shown: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return unet(noisy, steps, embeds, added_cond_kwargs={"image_embeds": [shown]}).sample

    ours = predicted(trained.unet, features)
    torch.testing.assert_close(predicted(loaded.unet, features), ours, atol=1e-5, rtol=1e-4)
    assert (predicted(loaded.unet, 0 * features) - ours).abs().max() > 1e-4
    assert np.isfinite(draw(loaded, ip_adapter_image=picture)).all()
