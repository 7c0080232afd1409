"""Duplicate detection finds all repeated captions and no others."""

from __future__ import annotations

import random

import pytest
from rapidfuzz import fuzz

from bootpig.stages.caption.duplicates import DuplicateIndex, normalised, subject_of
from bootpig.stages.caption.phrases import head_noun

CAPTION = "A photo of a faded Polaroid camera, lying on a sun-warmed picnic blanket in the old park"


def found(other: str, near: float = 0.9) -> bool:
    index = DuplicateIndex(near)
    index.add(CAPTION)
    return index.repeats(other)


@pytest.mark.parametrize(
    ("other", "repeats"),
    [
        (CAPTION, True),
        ("a photo of a FADED polaroid camera — lying on a sun-warmed   picnic blanket, in the old park.", True),
        (CAPTION.replace("Polaroid", "\uff30olaroid"), True),
        (CAPTION.replace("old", "green"), True),
        (CAPTION.replace("camera", "lantern"), False),
        (CAPTION.replace("old", "green").replace("lying", "left"), False),
        ("A photo of a camera, on a table", False),
    ],
)
def test_what_repeats(other: str, repeats: bool) -> None:
    assert found(other) is repeats


def test_at_one_only_equal_captions_repeat() -> None:
    assert found(CAPTION + ".", near=1) and not found(CAPTION.replace("old", "green"), near=1)


def test_the_prefix_filter_misses_none() -> None:
    rng = random.Random(0)
    words = [f"word{k}" for k in range(40)]
    captions = [
        f"A photo of a {rng.choice('ab')}, {' '.join(rng.choices(words, k=rng.randrange(4, 14)))}" for _ in range(1200)
    ]
    captions += [" ".join(rng.sample(caption.split(), len(caption.split()))) for caption in captions[:100]]
    for caption in captions[:400]:
        pieces = caption.split()
        pieces[rng.randrange(5, len(pieces))] = rng.choice(words)
        captions.append(" ".join(pieces))
    index = DuplicateIndex(0.8)
    kept: list[tuple[str, str, list[str]]] = []
    """(normalised, subject, words behind "A photo of")."""
    repeated = 0
    for caption in captions:
        text, subject = normalised(caption), subject_of(caption)
        body = text.split()[3:]
        brute = any(
            other == text or (about == subject and fuzz.ratio(words, body) >= 80 - 1e-6) for other, about, words in kept
        )
        assert index.repeats(caption) is brute
        repeated += brute
        if not brute:
            index.add(caption)
            kept.append((text, subject, body))
    assert 100 < repeated < 1000
    assert sum(index.subjects.values()) == len(index) == len(kept)


@pytest.mark.parametrize(
    ("phrase", "noun"),
    [
        ("faded Polaroid camera", "camera"),
        ("mug of hot tea", "mug"),
        ("old-fashioned alarm clock with two bells", "clock"),
        ("T-shirt", "t-shirt"),
        ("teddy bear wearing a scarf", "bear"),
        ("", ""),
    ],
)
def test_head_noun(phrase: str, noun: str) -> None:
    assert head_noun(phrase) == noun
