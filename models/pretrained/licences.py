"""The licence of a model, from its card, and terms that forbid training other models on what it draws."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

from bootpig.models.pretrained.source import ModelSource

CARD_FILE = "README.md"

_LONGEST = 100
"""Characters of a licence's name that are kept: cards are untrusted."""


@dataclass(frozen=True)
class Terms:
    """Terms that limit what may be trained on a model's pictures."""

    says: str
    """What is forbidden, after `its pictures may not be used to`."""
    page: str
    """Address of the terms."""
    licences: frozenset[str]
    """Names of the licence in the cards of models."""
    models: re.Pattern[str]
    """Lower-case hub ids or folder names of models whose card is not at hand."""


TERMS = (
    Terms(
        "train, fine-tune or distill a model that competes with FLUX",
        "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
        frozenset(
            {"flux-1-dev-non-commercial-license", "flux-dev-non-commercial-license", "flux-non-commercial-license"}
        ),
        re.compile(r"flux[.-]?(1-(kontext-|krea-)?dev|2-dev|2-klein-(base-)?9b)\b"),
    ),
    Terms(
        "create or improve a foundational generative model other than Stability AI's",
        "https://stability.ai/community-license-agreement",
        frozenset({"stabilityai-ai-community", "stabilityai-community", "sai-nc-community"}),
        re.compile(r"stable-diffusion-3(\.5)?-|sd(xl)?-turbo\b|stable-cascade"),
    ),
    Terms(
        "improve any other AI model",
        "https://huggingface.co/tencent/HunyuanImage-3.0/blob/main/LICENSE",
        frozenset({"tencent-hunyuan-community", "tencent-hunyuan-community-license", "tencent-license"}),
        re.compile(r"hunyuan-?(dit|image)"),
    ),
)
"""Known terms, read in November 2026. No advice, and surely not all of them."""


def fetch_licence(source: ModelSource) -> str | None:
    """The licence of a model that was found. The card of a hub model is downloaded, a few kilobytes, if it can be."""
    if source.revision is not None and not constants.HF_HUB_OFFLINE:
        with suppress(Exception):  # no card, no connection: the licence is unknown, and nothing depends on it
            hf_hub_download(source.path, CARD_FILE, revision=source.revision)
    return licence_of(source.path, source.revision)


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


def training_terms(model: str, licence: str | None) -> Terms | None:
    """The terms that limit training on a model's pictures. None: none are known.

    Args:
        model: the value in the config, a hub id or a path.
        licence: as given by `licence_of`.
    """
    name = model.rstrip("/").lower()
    for terms in TERMS:
        if licence is not None and licence.lower() in terms.licences:
            return terms
        # a card that names another licence counts more than a name that looks alike
        if licence in (None, "other") and terms.models.search(name):
            return terms
    return None
