"""The model card says what `bootpig.json` knows, and nothing else."""

from __future__ import annotations

from pathlib import Path

import yaml

from bootpig.models.pipelines.card import model_card

METRICS = {
    "subjects": 20,
    "images": 80,
    "methods": {"bootpig": {"dino": {"mean": 0.61234}, "clip_t": {"mean": 0.3}}, "real": {"dino": {"mean": 0.9}}},
}


def head(card: str) -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load(card.split("---\n")[1])
    return loaded


def test_all_that_is_known_is_said(tmp_path: Path) -> None:
    info = {
        "base": "someone/stable-diffusion",
        "revision": "a" * 40,
        "dataset": "f" * 64,
        "samples": 968,
        "recipe": {"steps": 500, "trainable": {"base": "rsa"}},
        "key_scale": 1.1,
        "metrics": METRICS,
    }
    card = model_card(info)
    assert head(card)["base_model"] == "someone/stable-diffusion"
    for text in (
        "a" * 40,
        "f" * 64,
        "968 (reference",
        "| steps | `500` |",
        "| trainable.base | `rsa` |",
        "key_scale: 1.1",
    ):
        assert text in card
    assert "| bootpig | 0.300 | – | 0.612 |" in card
    assert "20 subjects, 80 pictures" in card
    assert "see its model card" in card
    assert "Kept weights" not in card
    kept = {"step": 400, "dino": 0.71, "clip_t": 0.3, "text_only_clip_t": 0.305, "fidelity": 0.98}
    card = model_card({**info, "kept": kept})
    assert "after update 400:" in card and "at least 0.98 of" in card
    assert "DINO 0.710, CLIP-T 0.300 (text only: 0.305)." in card
    assert "CLIP-T 0.300." in model_card({**info, "kept": {**kept, "text_only_clip_t": None}})


def test_what_is_not_known_is_left_out() -> None:
    card = model_card({"base": "/somewhere/base"})
    assert "## Data" not in card
    assert "## Recipe" not in card
    assert "## Metrics" not in card
    assert "base_model" not in head(card)


def test_the_licence_is_the_bases_own() -> None:
    assert head(model_card({"base": "toy", "base_license": "apache-2.0"}))["license"] == "apache-2.0"
