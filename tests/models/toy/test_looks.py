"""models.toy.looks: captions that name what the renderer draws."""

from __future__ import annotations

import colorsys
import random
import re

import numpy as np
import pytest
import torch

from bootpig.models.toy.clip import MAX_TOKENS, build_processor
from bootpig.models.toy.clip_judge import altered, contrast, matches, partly, subject_auc, vocabulary
from bootpig.models.toy.looks import (
    ABSENT,
    COLOURS,
    FACTS,
    LOOK,
    PATTERNS,
    PLAIN,
    UNSAID,
    colour_phrases,
    facts_of,
    phrase,
)
from bootpig.models.toy.subjects import HUES, look_of, render_subject
from bootpig.models.toy.world import KINDS, POSITIONS, SCENES, caption, draw_identity


def random_facts(count: int) -> np.ndarray:
    """N×7: the facts of `count` pictures of training identities."""
    rng, draw = np.random.default_rng(0), random.Random(0)
    kinds = rng.integers(len(KINDS), size=count)
    identities = np.array([draw_identity(draw, KINDS[kind], "train") for kind in kinds])
    return facts_of(kinds, rng.integers(len(POSITIONS), size=count), rng.integers(len(SCENES), size=count), identities)


def named(pixel: np.ndarray) -> str:
    """The name of a rendered colour."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixel[:3] / 255))
    if saturation < 0.3:
        return "white" if value > 0.5 else "black"
    return COLOURS[round(hue * HUES) % HUES]


def test_a_look_is_what_is_drawn() -> None:
    """The body of a plain ball has its first colour, the lower half of halves the second, a house's roof the accent."""
    seen = set()
    for identity in range(60):
        look, pixels = look_of("ball", identity), np.asarray(render_subject("ball", identity))
        if look.pattern in ("plain", "halves"):
            assert named(pixels[60, 80]) == COLOURS[look.colour]
            assert named(pixels[120, 80]) == COLOURS[look.second if look.pattern == "halves" else look.colour]
            seen.add(look.colour)
        house = np.asarray(render_subject("house", identity))
        assert named(house[66, 80]) == COLOURS[look_of("house", identity).accent]
    assert len(seen) >= 8


def test_phrases() -> None:
    mug, ball, dots, plain = KINDS.index("mug"), KINDS.index("ball"), list(PATTERNS).index("dots"), 0
    red, orange, blue = COLOURS.index("red"), COLOURS.index("orange"), COLOURS.index("blue")
    assert phrase([mug, 0, 1, red, dots, blue, orange]) == (
        "A photo of a red mug with blue dots and orange trim, on the left on a sandy beach"
    )
    assert phrase([mug, UNSAID, UNSAID, UNSAID, dots, UNSAID, UNSAID]) == "A photo of a mug with dots"
    assert (
        phrase([ball, UNSAID, 1, orange, plain, ABSENT, ABSENT]) == "A photo of a plain orange ball, on a sandy beach"
    )
    assert phrase([ball, UNSAID, UNSAID, orange, UNSAID, UNSAID, UNSAID]) == "A photo of an orange ball"
    for kind, position, scene in ((0, 0, 0), (6, 2, 7)):
        said = [kind, position, scene, *[UNSAID] * 4]
        assert phrase(said) == caption(KINDS[kind], POSITIONS[position], SCENES[scene])
    assert colour_phrases()[len(COLOURS) + 1] == "A photo of an orange vase"


def test_captions_of_the_judge_have_one_token_per_word_and_fit() -> None:
    tokenizer = build_processor(vocabulary()).tokenizer
    for facts in random_facts(200):
        text = phrase(facts)
        tokens = tokenizer(text).input_ids
        assert len(tokens) == len(re.findall(r"\w+|,", text)) + 2 <= MAX_TOKENS


def test_each_caption_is_true_of_its_own_picture_and_of_those_it_does_not_contradict() -> None:
    facts = random_facts(100)
    said = partly(facts, np.random.default_rng(1))
    true = matches(facts, said)
    assert true.diagonal().all()
    assert true.mean() < 0.1
    column = FACTS.index("colour")
    other = facts[:1].copy()
    other[0, column] += 1
    assert matches(other, said[:1])[0, 0] == (said[0, column] == UNSAID)
    assert matches(facts, np.full((1, len(FACTS)), UNSAID)).all()
    assert (said[:, FACTS.index("pattern")] != UNSAID)[said[:, FACTS.index("second")] != UNSAID].all()


def test_an_altered_caption_is_wrong_in_one_fact_that_can_be_seen() -> None:
    facts = random_facts(300)
    said = altered(facts, np.random.default_rng(1))
    place = [FACTS.index("position"), FACTS.index("scene")]
    assert (said[:, place] == UNSAID).all()
    differs = (said != facts) & (said != UNSAID)
    assert (differs.sum(1) == 1).all()
    assert differs.any(0).tolist() == [fact in LOOK for fact in FACTS]
    assert not differs[facts == ABSENT].any()
    pattern = FACTS.index("pattern")
    assert not differs[facts[:, pattern] == PLAIN, pattern].any()
    assert not matches(facts, said).diagonal().any()
    assert (said[:, FACTS.index("second")] == ABSENT)[said[:, FACTS.index("pattern")] == PLAIN].all()
    for row, column in (("colour", COLOURS), ("pattern", PATTERNS), ("second", COLOURS), ("accent", COLOURS)):
        values = said[:, FACTS.index(row)]
        assert ((values >= 0) & (values < len(column)) | (values == ABSENT)).all()


def test_contrast_is_least_where_all_true_captions_are_equally_near() -> None:
    positive = torch.tensor([[1.0, 1, 0], [0, 1, 0], [0, 0, 1]])
    right = 20 * positive
    assert contrast(right, positive) < contrast(20 * torch.eye(3), positive) < contrast(20 * (1 - positive), positive)
    alone, nowhere = torch.eye(4), torch.zeros(4, 2)
    assert contrast(50 * alone, alone) == pytest.approx(0, abs=1e-4)
    also_wrong = torch.cat([alone, nowhere], 1)
    assert contrast(50 * also_wrong, also_wrong) == pytest.approx(0, abs=1e-4)
    assert contrast(50 * torch.cat([alone, nowhere + 1], 1), also_wrong) > 0.4


def test_subject_auc_is_1_if_the_subject_decides_and_0_if_the_scene_does() -> None:
    kinds, backdrops = np.repeat([0, 1], 8), np.tile([[0, 1], [1, 2]], (8, 1))
    own = torch.eye(16)[:, None].expand(-1, 2, -1)
    assert subject_auc(own, kinds, backdrops) == 1
    assert subject_auc(torch.eye(3)[torch.from_numpy(backdrops)], kinds, backdrops) == 0
