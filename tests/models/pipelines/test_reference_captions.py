"""What the Reference UNet reads."""

from __future__ import annotations

import pytest

from bootpig.models.pipelines.reference_captions import object_caption, reference_captions

PROMPTS = ["A photo of a teapot, on the left, there", "a mug"]


def test_object_caption() -> None:
    assert object_caption(PROMPTS[0]) == "A photo of a teapot"
    assert object_caption(PROMPTS[1]) == "a mug"


def test_captions_follow_what_the_model_was_trained_with() -> None:
    assert reference_captions("caption", PROMPTS, None, 2) == PROMPTS
    assert reference_captions("object", PROMPTS, None, 2) == ["A photo of a teapot", "a mug"]
    assert reference_captions("caption", None, None, 2) is None


def test_given_texts_go_first() -> None:
    assert reference_captions("object", PROMPTS, "a pot, here", 2) == ["a pot, here"] * 2
    assert reference_captions("object", None, ["a", "b"], 2) == ["a", "b"]


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match="reference_prompt: 1 for 2 prompts"):
        reference_captions("object", PROMPTS, ["a"], 2)
    with pytest.raises(ValueError, match="reference_prompt: this model reads object captions"):
        reference_captions("object", None, None, 2)
