"""The small BPE has the properties that CLIP's text models rely on."""

from __future__ import annotations

import pytest

from bootpig.models.toy.tokens import all_captions, build_tokenizer
from bootpig.models.toy.world import KINDS, POSITIONS, SCENES


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(all_captions(), 32)


def test_all_captions_are_ordered_by_kind_position_scene() -> None:
    captions = all_captions()
    assert len(captions) == len(set(captions)) == len(KINDS) * len(POSITIONS) * len(SCENES)
    assert (
        captions[(3 * len(POSITIONS) + 1) * len(SCENES) + 2] == f"A photo of a {KINDS[3]}, {POSITIONS[1]} {SCENES[2]}"
    )


def test_the_end_token_has_the_highest_id_and_the_first_is_not_zero(tokenizer) -> None:
    ids = tokenizer("a mug")["input_ids"]
    assert ids[0] == len(tokenizer) - 2 > 0  # OWL-ViT takes a leading 0 for an absent query
    assert ids[-1] == max(ids) == len(tokenizer) - 1  # and pools where the id is highest


def test_known_words_are_one_token_and_others_fall_into_bytes(tokenizer) -> None:
    for kind in KINDS:
        assert len(tokenizer(f"a {kind}")["input_ids"]) == 4
    strange = tokenizer("a Zyzzyva – ünïque")["input_ids"]
    assert len(strange) > 12
    assert tokenizer.decode(strange, skip_special_tokens=True).replace(" ", "") == "azyzzyva–ünïque"


def test_a_saved_tokenizer_reads_the_same(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    texts = ["a mug", "An UMBRELLA, on the left under a starry night sky", "a faded camera"]
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    padded = again("a mug", padding="max_length")["input_ids"]
    assert len(padded) == 32
    assert padded[4:] == [len(again) - 1] * 28
