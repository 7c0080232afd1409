"""Background: whether the scene of the caption is where the subject is not.

CLIP-T rises with the subject alone, and a picture whose background was lost can have a high one. Here the subject is
painted over and the picture is compared with the caption's scene only, as CustomNet (arXiv 2310.19784) compares
pictures with background texts; but the subject must be found, so that an empty scene is no success.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from bootpig.stages.caption.phrases import OPENING
from bootpig.stages.evaluate.drawing import Drawing
from bootpig.stages.evaluate.measures.masks import MaskFiles
from bootpig.stages.evaluate.measures.measure import (
    Features,
    ImageEncoder,
    Measure,
    TextVectors,
    Values,
    by_row,
    photos,
)
from bootpig.stages.evaluate.subjects import Subject

GREY = (122, 117, 104)
"""The mean colour of CLIP's training pictures, which its processor turns to zero."""
GROWN = 0.02
"""How far the painted area reaches beyond the mask, as a fraction of the picture's longer side: outlines tell too."""
LEAST = 0.05
"""Fraction of the picture that must be left."""

_PLACE = r"(?:on the (?:left|right)|in the (?:cent(?:er|re)|middle))(?: side)?(?: of the (?:photo|picture|image))?"
_POSITION = re.compile(rf"^{_PLACE}(?:\s*,\s*|\s+|$)", re.IGNORECASE)
_IN_FRONT = re.compile(r"^(?:in|on|at|under|near|by|beside|inside|outside|against|above|below|over)\b", re.IGNORECASE)
_WORN = re.compile(r"^(?:is |that is )?(?:wearing|dressed|covered|made|shaped|with (?:its|his|her)|painted)\b", re.I)


class Background(Measure):
    """The cosine of the picture without its subject and of `A photo <scene>`. In [-1, 1]."""

    def __init__(self, texts: TextVectors, masks: MaskFiles) -> None:
        self.texts = texts
        self.masks = masks

    def drawn(self, rows: Sequence[Drawing], features: Features) -> Values:
        def value(row: Drawing, vector: NDArray[np.float32]) -> float | str:
            scene = scene_of(row.prompt, row.subject.object)
            return "no_scene" if scene is None else self.texts.cosine(vector, f"A photo {scene}")

        return by_row(rows, features, value)

    def real(self, subject: Subject) -> float | None:
        """The same for real pictures with known captions in which the subject is found."""
        found = []
        for path in subject.real:
            scene = scene_of(subject.captions.get(path.name, ""), subject.object)
            mask = "" if scene is None else self.masks.get(self.masks.real_key(subject, path))
            if isinstance(mask, str):
                continue
            rest = without_subject(photos(subject, [path])[0], mask)
            if not isinstance(rest, str):
                found.append(self.texts.cosine(self.texts.encoder.images([rest])[0], f"A photo {scene}"))
        return float(np.mean(found)) if found else None


class Surroundings:
    """Embeds pictures without their subjects."""

    def __init__(self, encoder: ImageEncoder, masks: MaskFiles) -> None:
        self.encoder = encoder
        self.masks = masks

    def read(self, rows: Sequence[Drawing], keys: Sequence[str], pictures: Sequence[Image.Image]) -> Features:
        """One vector per picture, each computed alone, because which of them have a subject differs.

        Args:
            rows: the drawings.
            keys: names of their masks.
            pictures: RGB, one per drawing.
        """
        return Features.of([self._value(key, pictures[place]) for place, key in enumerate(keys)])

    def _value(self, key: str, picture: Image.Image) -> NDArray[np.float32] | str:
        mask = self.masks.get(key)
        rest = mask if isinstance(mask, str) else without_subject(picture, mask)
        return rest if isinstance(rest, str) else self.encoder.images([rest])[0]


def without_subject(picture: Image.Image, mask: NDArray[np.bool_]) -> Image.Image | str:
    """An RGB picture with its subject, and a little around it, painted over in `GREY`; or why there is nothing left.

    Args:
        picture: RGB, H×W.
        mask: HW bool.
    """
    grown = Image.fromarray(mask.astype(np.uint8) * 255)
    grown = grown.filter(ImageFilter.BoxBlur(max(1, round(GROWN * max(picture.size)))))
    grown = grown.point(lambda value: 255 if value else 0)
    if (np.asarray(grown) == 0).mean() < LEAST:
        return "no_background"
    rest = picture.copy()
    rest.paste(GREY, mask=grown)
    return rest


def scene_of(caption: str, noun: str) -> str | None:
    """The part of a caption that says where its subject is: `in the jungle` for `a red mug in the jungle`.

    That is what follows the subject's class word, without a position in the picture (`on the left`), or else a place in
    front of it (`On a beach, a mug`). None if there is neither: `a red mug`, `a dog wearing a hat`.
    """
    found = re.search(rf"\b{re.escape(noun)}\b", caption, re.IGNORECASE)
    if found is None:
        return None
    after = caption[found.end() :].strip(" ,.;")
    after = _POSITION.sub("", after).strip(" ,.;")
    if after and not _WORN.match(after):
        return after
    before = re.sub(OPENING, "", caption[: found.start()], flags=re.IGNORECASE)
    place, comma, _ = before.strip().partition(",")
    return place if comma and _IN_FRONT.match(place) else None
