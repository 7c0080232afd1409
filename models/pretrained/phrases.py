"""Puts a phrase into the form that each family of zero-shot detectors reads: separators, length, padding."""

from __future__ import annotations

import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bootpig.models.pretrained.source import TRANSFORMER, ModelSource

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """How the detectors of one family read a phrase and pictures."""

    name: str
    padding: str | bool = "max_length"
    """Of the processor. OWL's and OmDet-Turbo's models were trained on phrases padded to the maximum length."""
    separators: str = ""
    """Characters that end a phrase. The model would take the text between two of them for a phrase of its own."""
    pads_pictures: bool = False
    """Whether pictures of different sizes are padded to one size. The padding changes the boxes."""


FAMILIES = {
    "owlvit": Family("OWL-ViT"),
    "owlv2": Family("OWLv2"),
    "grounding-dino": Family("Grounding DINO", padding=True, separators=".?", pads_pictures=True),
    "mm-grounding-dino": Family("MM Grounding DINO or LLMDet", padding=True, separators=".?", pads_pictures=True),
    "omdet-turbo": Family("OmDet-Turbo"),
}
"""`model_type` in a model's config.json → family."""


def detector_problem(source: ModelSource) -> str | None:
    """Why a model cannot be the detector, in one line, or None. Reads only its config.json, if that is on this
    machine."""
    path = Path(source.path, TRANSFORMER)
    if source.revision is not None:
        from huggingface_hub import try_to_load_from_cache

        path = Path(str(try_to_load_from_cache(source.path, TRANSFORMER, revision=source.revision)))
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError):  # not downloaded, or damaged, which the loader reports
        return None
    return config_problem(source, config) if isinstance(config, dict) else None


def config_problem(source: ModelSource, config: dict[str, Any]) -> str | None:
    """Why a model with this config.json cannot be the detector, in one line, or None."""
    kind = config.get("model_type")
    if kind not in FAMILIES:
        known = ", ".join(family.name for family in FAMILIES.values())
        return f"{source.field}: {source.source!r} is a {kind!r} model, which does not look for a phrase; use {known}"
    backbone = config.get("backbone_config")
    timm = config.get("use_timm_backbone") or (
        isinstance(backbone, dict) and backbone.get("model_type") == "timm_backbone"
    )
    if timm and importlib.util.find_spec("timm") is None:
        return f"{source.field}: {source.source!r} needs the package timm; pip install timm"
    return None


class Phrases:
    """Phrases for one loaded detector.

    Args:
        tokenizer: the detector's tokenizer.
        config: the detector's transformers config.
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self.family = FAMILIES[config.model_type]
        lengths = [tokenizer.model_max_length, config.text_config.max_position_embeddings]
        self.length: int = min(*lengths, getattr(config, "max_text_len", lengths[0]))
        """Maximum number of tokens, with the special ones."""
        self._tokenizer = tokenizer
        self._warned = False

    def text(self, phrase: str) -> str:
        """What the processor gets for `phrase`. Empty if nothing is left to look for.

        A phrase with more tokens than the detector reads is cut off at its end, with one warning per detector.
        """
        # a lone surrogate, as in broken JSON, is not text to a tokenizer
        text = phrase.encode("utf-8", "replace").decode("utf-8")
        for separator in self.family.separators:
            text = text.replace(separator, " ")
        if not text.strip():
            return ""
        # begin and end, and the separator that the processor adds
        room = self.length - 2 - bool(self.family.separators)
        tokens = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if len(tokens.input_ids) > room:
            self._warn(phrase, len(tokens.input_ids), room)
            if self.family.separators:
                # the tokenizer's own truncation would also remove the separator
                text = text[: tokens.offset_mapping[room - 1][1]]
        return " ".join(text.split()) if self.family.separators else text

    def _warn(self, phrase: str, count: int, room: int) -> None:
        if not self._warned:
            self._warned = True
            start = phrase if len(phrase) <= 40 else f"{phrase[:39]}…"
            _LOG.warning(
                "segment: the phrase %r has %d tokens, of which %s reads the first %d; shorten such phrases",
                start,
                count,
                self.family.name,
                room,
            )
