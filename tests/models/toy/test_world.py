"""The renderer: reproducible pictures, the caption grammar, and the split of identities."""

from __future__ import annotations

import hashlib
import random
import re

import numpy as np
import pytest

from bootpig.models.toy.world import (
    KINDS,
    POSITIONS,
    SCENES,
    SIZE,
    caption,
    draw_identity,
    render_reference,
    render_scene,
    render_subject,
    split_of,
    with_article,
)


def test_renders_are_the_same_as_ever() -> None:
    """The checkpoints were trained on exactly these pictures, so the renderer must not change by accident."""
    digest = hashlib.sha256()
    for index, kind in enumerate(KINDS):
        scene = render_scene(f"golden/{index}", "held_out", kind=kind, scene=SCENES[index % len(SCENES)])
        digest.update(np.ascontiguousarray(scene.image // 8).tobytes() + repr((scene.box, scene.caption)).encode())
    assert digest.hexdigest() == "49a2a400ec5915bdadaa061ff53dde18d83dde26dbf9eb602ef953e5812d67be"


def test_a_scene_is_fixed_by_its_seed() -> None:
    first, again, other = (render_scene(seed) for seed in ("a", "a", "b"))
    assert np.array_equal(first.image, again.image)
    assert first.identity == again.identity
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("position", POSITIONS)
def test_mask_box_and_position_agree(position: str) -> None:
    scene = render_scene("agree", position=position, kind="mug")
    x0, y0, x1, y1 = scene.box
    assert scene.image.shape == (SIZE, SIZE, 3)
    assert scene.image.dtype == np.uint8
    assert scene.mask[y0:y1, x0:x1].sum() == scene.mask.sum() > 100
    assert 0 < x0 < x1 < SIZE
    assert 0 < y0 < y1 < SIZE
    assert POSITIONS[np.digitize((x0 + x1) / 2 / SIZE, (0.42, 0.58))] == position


def test_one_identity_keeps_its_look_between_scenes() -> None:
    def mean_colour(seed: str, identity: int) -> np.ndarray:
        scene = render_scene(seed, kind="ball", identity=identity)
        return scene.image[scene.mask].astype(float).mean(0)

    assert np.abs(mean_colour("one", 7) - mean_colour("two", 7)).max() < 12
    assert np.abs(mean_colour("one", 7) - mean_colour("one", 8)).max() > 12


def test_identities_stay_in_their_split() -> None:
    rng = random.Random(0)
    for kind in KINDS:
        assert all(split_of(kind, draw_identity(rng, kind, "held_out")) == "held_out" for _ in range(5))
        assert all(split_of(kind, draw_identity(rng, kind, "train")) == "train" for _ in range(5))
    share = np.mean([split_of("mug", identity) == "held_out" for identity in range(4000)])
    assert share == pytest.approx(1 / 8, abs=0.02)
    scenes = [render_scene(seed, "held_out") for seed in range(8)]
    assert all(split_of(scene.kind, scene.identity) == "held_out" for scene in scenes)


def test_captions_follow_the_grammar_and_never_name_a_look() -> None:
    grammar = re.compile(r"A photo of (an? \w+), (on the left|in the center|on the right) (on|in|under) [a-z ]+")
    for kind in KINDS:
        for position in POSITIONS:
            for scene in SCENES:
                text = caption(kind, position, scene)
                match = grammar.fullmatch(text)
                assert match
                assert match[1] == with_article(kind)
                assert not re.search(r"plain|halves|bands|dots|checks|striped", text)
    assert with_article("umbrella") == "an umbrella"
    assert with_article("mug") == "a mug"


def test_subject_and_reference() -> None:
    subject = render_subject("vase", 3)
    reference = np.asarray(render_reference("vase", 3))
    assert subject.mode == "RGBA"
    assert subject.getextrema()[3] == (0, 255)
    assert reference.shape == (SIZE, SIZE, 3)
    assert (reference[[0, -1]] == 255).all()
    assert (reference[:, [0, -1]] == 255).all()
    assert reference.min() < 200


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="kind: 'unicorn'"):
        render_subject("unicorn", 0)
    with pytest.raises(ValueError, match="scene: 'on the moon'"):
        render_scene(0, scene="on the moon")
    with pytest.raises(ValueError, match="position: 'above'"):
        render_scene(0, position="above")
