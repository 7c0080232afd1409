"""Licences are read from cards, which are untrusted, and known terms about training on pictures are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootpig.models.pipelines.card import licence_of
from bootpig.models.pretrained.licences import training_terms
from bootpig.models.pretrained.source import PROJECT


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# Model\n", "mit"),
        (
            "---\nlicense: other\nlicense_name: flux-1-dev-non-commercial-license\n---\n",
            "flux-1-dev-non-commercial-license",
        ),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense: 4\nlicense_name: [a]\n---\n", None),
        ("---\nlicense: [a]\n---\n", None),
        ("---\n: : :\n---\n", None),
        ("---\ndate: 2020-13-45\n---\n", None),
        ("no metadata", None),
        ("---\n- a\n---\n", None),
    ],
)
def test_the_licence_in_a_card(tmp_path: Path, card: str, licence: str | None) -> None:
    assert licence_of(str(tmp_path)) is None
    (tmp_path / "README.md").write_text(card)
    assert licence_of(str(tmp_path)) == licence


@pytest.mark.parametrize(
    "name", ["stable-diffusion", "owlvit", "clip", "clip-judge", "dino", "sam/sam_vit_toy.safetensors"]
)
def test_the_toy_checkpoints_have_one(name: str) -> None:
    assert licence_of(str(PROJECT / "models/toy/checkpoints" / name)) == "apache-2.0"


def test_names_that_are_no_repository_have_none() -> None:
    for name in ("gpt-4.1 mini", "https://host/model.pth", "a/b/c", "", "../..", "--x"):
        assert licence_of(name) is None


@pytest.mark.parametrize(
    ("model", "licence", "known"),
    [
        ("black-forest-labs/FLUX.1-dev", None, True),
        ("black-forest-labs/FLUX.1-Krea-dev", "other", True),
        ("black-forest-labs/FLUX.2-klein-9B", None, True),
        ("/models/my-copy", "flux-1-dev-non-commercial-license", True),
        ("stabilityai/stable-diffusion-3.5-medium", None, True),
        ("stabilityai/sdxl-turbo", None, True),
        ("Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers", None, True),
        ("black-forest-labs/FLUX.1-schnell", None, False),
        ("black-forest-labs/FLUX.2-klein-4B", "apache-2.0", False),
        ("me/flux.1-dev-look-alike", "apache-2.0", False),
        ("stabilityai/stable-diffusion-xl-base-1.0", "openrail++", False),
        ("Qwen/Qwen-Image", None, False),
        ("Tongyi-MAI/Z-Image-Turbo", None, False),
    ],
)
def test_terms_by_licence_or_by_name(model: str, licence: str | None, known: bool) -> None:
    assert (training_terms(model, licence) is not None) is known
