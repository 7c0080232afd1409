"""The licence of a model, from its card, and terms that forbid training other models on what it draws."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

from huggingface_hub import constants, hf_hub_download

from bootpig.models.pipelines.card import CARD_FILE, licence_of
from bootpig.models.pretrained.source import ModelSource


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
