"""Captions and their objects, as people and models write them."""

from __future__ import annotations

import pytest

from bootpig.models.pipelines.reference_captions import object_caption
from bootpig.stages.caption.duplicates import DuplicateIndex, normalised, subject_of
from bootpig.stages.caption.phrases import head_noun, object_phrase

OBJECTS = [
    ("A photo of a small, red wooden boat, on a lake", "small, red wooden boat"),
    ("A photo of a tiny, fluffy, white kitten, sleeping on a sofa", "tiny, fluffy, white kitten"),
    ("A photo of a weathered, faded blue rowboat, moored at a pier", "weathered, faded blue rowboat"),
    ("A photo of a small, smiling cat, on a sofa", "small, smiling cat"),
    ("A photo of a vintage, 1,000-piece puzzle, at home", "vintage, 1,000-piece puzzle"),
    ("A photo of a 1,000-piece puzzle, on a table", "1,000-piece puzzle"),
    ("A photo of an orange, on a plate", "orange"),
    ("A photo of an orange, lying on a table", "orange"),
    ("A photo of an orange, here", "orange"),
    ("A photo of a square, under a lamp", "square"),
    ("A photo of a red apple, small and shiny, on a plate", "red apple"),
    ("A photo of the Eiffel Tower, at dusk", "Eiffel Tower"),
    ("Photo of a cat, on a mat", "cat"),
    ("a photograph of an owl, in a tree", "owl"),
    ("A photo of a red mug，on a table", "red mug"),
    ("A photo of a red mug、on a table", "red mug"),
    ("A photo of a 🦊, in snow", "🦊"),
    ("A photo of two mugs, on a shelf", "two mugs"),
    ("A photo of a kid's C++ book, on a desk", "kid's C++ book"),
    ("A photo of a bed, in a room", "bed"),
    ("A photo of a sled, on snow", "sled"),
    ("A photo of a mug on a table", None),
    ("A photo of a,b", None),
    ("A photo of a …, on a table", None),
    ("A photo of a , on a table", None),
    ("A photo of a mug,", None),
    ("Once upon a time, there was a mug", None),
]


@pytest.mark.parametrize(("caption", "phrase"), OBJECTS)
def test_an_object_is_found_as_a_reader_finds_it(caption: str, phrase: str | None) -> None:
    assert object_phrase(caption) == phrase
    if phrase is not None:
        assert object_caption(caption).endswith(phrase), "encode and inference cut at the same place"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A photo of a 🦊, in snow", "A photo of a 🐻, in snow"),
        ("A photo of a C++ book, here", "A photo of a C# book, here"),
    ],
)
def test_signs_tell_captions_apart(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)
    index = DuplicateIndex(0.95)
    index.add(one)
    assert index.repeats(one) and not index.repeats(other)


def test_words_that_name_an_object() -> None:
    assert [head_noun(phrase) for phrase in ("small, red boat", "🦊", "C++", "1,000-piece puzzle")] == [
        "boat",
        "🦊",
        "c++",
        "puzzle",
    ]
    assert subject_of("A photo of a 🦊, in snow") == "🦊"
