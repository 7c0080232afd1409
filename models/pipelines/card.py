"""The model card (README.md) of a trained model: what it is, what it was trained on, and how to use it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

CARD_FILE = "README.md"

_LONGEST = 100
"""Characters of a licence's name that are kept: cards are untrusted."""

_HUB_LICENCES = frozenset(
    {
        "apache-2.0",
        "bigscience-openrail-m",
        "bsd-3-clause",
        "cc-by-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "creativeml-openrail-m",
        "mit",
        "openrail",
        "openrail++",
        "other",
    }
)
"""Identifiers in the hub's list of licences that models and pictures have. The hub refuses a card that names another,
unless as `other`."""

METRICS = {
    "clip_t": "CLIP-T ↑",
    "clip_i": "CLIP-I ↑",
    "dino": "DINO ↑",
    "dinov2": "DINOv2 ↑",
    "siglip_t": "SigLIP-T ↑",
    "siglip_i": "SigLIP-I ↑",
    "identity": "identity ↑",
    "background": "background ↑",
    "copy_paste": "copy-paste ↓",
    "diversity": "diversity ↑",
}
"""The measures of evaluate, in the order of the table. The arrow says which way is better."""


def model_card(info: Mapping[str, Any], repository: str | None = None, sheet: str | None = None) -> str:
    """The card as Markdown, starting with the hub's YAML metadata.

    Args:
        info: the content of `bootpig.json`. Optional entries: `samples` and `dataset` (number of samples and
            fingerprint of the data set), `recipe`, `base_license`, `kept` (step and scores of the best
            weights), and `metrics` (the content of evaluate's `metrics.json`).
        repository: the hub id, if the card is for the hub.
        sheet: evaluate's contact sheet, relative to the card.
    """
    base = str(info.get("base") or "")
    licence = info.get("base_license")
    head: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": ["bootpig"]}
    if "/" in base and not Path(base).is_absolute():
        head["base_model"] = base
    head |= licence_header(licence)
    lines = _text(info, base, licence, repository, sheet)
    return "\n".join(["---", yaml.safe_dump(head, sort_keys=True).strip(), "---", "", *lines]) + "\n"


def licence_header(licence: str | None) -> dict[str, str]:
    """The licence in the form that the hub accepts in a card's header."""
    if not licence or licence in _HUB_LICENCES:
        return {"license": licence} if licence else {}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.+]+", "-", licence.lower()).strip("-") or "unnamed"}


def licence_of(model: str, revision: str | None = None) -> str | None:
    """The licence named in a model's card, in its folder or the hub's local cache. None if unknown.

    Args:
        model: a folder, a file of weights beside its card, or a hub id.
        revision: the hub commit.
    """
    card = Path(model if Path(model).suffix not in (".pth", ".safetensors") else Path(model).parent, CARD_FILE)
    if not card.is_file() and model and not Path(model).is_absolute() and model.count("/") <= 1:
        try:
            cached = try_to_load_from_cache(model, CARD_FILE, revision=revision)
        except ValueError:  # the name of a service is no repository
            return None
        card = Path(cached) if isinstance(cached, str) else card
    try:
        parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        head = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    # a date such as 2020-13-45 is a ValueError
    except (OSError, yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None
    if not isinstance(head, dict):
        return None
    licence = head.get("license")
    if licence == "other":  # the hub's own list lacks it; the card names it beside
        licence = head.get("license_name") or licence
    return licence[:_LONGEST] if isinstance(licence, str) else None


def _text(
    info: Mapping[str, Any], base: str, licence: str | None, repository: str | None, sheet: str | None
) -> Iterator[str]:
    commit = f" at commit `{info['revision']}`" if info.get("revision") else ""
    yield f"# BootPIG on {Path(base).name or 'a Stable Diffusion base'}"
    yield ""
    yield "Draws a given subject in a described scene, from one to a few pictures of it, without training on it."
    yield "The method is BootPIG ([arXiv 2401.13974](https://arxiv.org/abs/2401.13974)): a Reference UNet reads"
    yield "the pictures, and the base UNet's self-attention layers attend to its features. This folder contains only"
    yield f"the trained weights. The base model is `{base}`{commit}."
    if info.get("method") == "lora":
        yield f"The weights are LoRA adapters of rank {info['lora']['rank']} for the base."
    yield ""
    yield "```python"
    yield f"pipeline = BootPIGPipeline.from_pretrained({base!r})  # BootPIGXLPipeline for SDXL"
    if repository is None:
        yield 'pipeline.load_bootpig("this folder")'
    else:
        yield f'pipeline.load_bootpig(snapshot_download("{repository}"))  # from huggingface_hub'
    yield 'pipeline("A photo of a teapot, on a snowy hill", reference_images=[picture]).images[0]'
    yield "```"
    yield ""
    yield "`load_bootpig` also sets these settings, which must be the same as in training:"
    yield ""
    for name in ("prediction_type", "key_scale", "pooling", "reference_caption", "reference_timestep"):
        yield f"- {name}: {info.get(name)}"
    if info.get("dataset"):
        yield ""
        yield "## Data"
        yield ""
        size = f"{info['samples']} (reference, target, caption) triplets" if info.get("samples") else "Triplets"
        yield f"{size}, made by language, diffusion, detection and segmentation models; none by people."
        yield f"Fingerprint: `{info['dataset']}`."
    if info.get("recipe"):
        yield ""
        yield "## Recipe"
        yield ""
        yield from _table(("setting", "value"), ((name, f"`{value}`") for name, value in _flat(info["recipe"])))
    if kept := info.get("kept"):
        yield ""
        yield "## Kept weights"
        yield ""
        yield f"These are the weights after update {kept['step']}: of all that were compared on validation subjects,"
        yield f"those with the highest DINO and a CLIP-T of at least {kept['fidelity']} of text only's, or else those"
        yield "with the nearest CLIP-T."
        yield ""
        text_only = kept.get("text_only_clip_t")
        beside = "" if text_only is None else f" (text only: {text_only:.3f})"
        yield f"DINO {kept['dino']:.3f}, CLIP-T {kept['clip_t']:.3f}{beside}."
    if info.get("metrics"):
        yield ""
        yield "## Metrics"
        yield ""
        metrics = info["metrics"]
        yield f"DreamBooth protocol, {metrics['subjects']} subjects, {metrics['images']} pictures per method."
        yield ""
        rows = metrics["methods"].items()
        others = {name for _, values in rows for name in values}
        measured = {
            name: title for name, title in METRICS.items() if name in ("clip_t", "clip_i", "dino") or name in others
        }
        yield from _table(
            ("method", *measured.values()),
            ((name, *(_mean(values, metric) for metric in measured)) for name, values in rows),
        )
    if sheet is not None:
        yield ""
        yield "## Samples"
        yield ""
        yield "Subjects that the model was not trained on. In each row: the reference, then pictures from text only,"
        yield "by the untrained model, and by this one."
        yield ""
        yield f"![contact sheet]({sheet})"
    yield ""
    yield "## Licence"
    yield ""
    yield f"The licence of the base model applies: {licence or 'see its model card'}."


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _mean(values: Mapping[str, Any], metric: str) -> str:
    mean = (values.get(metric) or {}).get("mean")  # None for real pictures without captions
    return "–" if mean is None else f"{mean:.3f}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in sorted(tree.items()):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
