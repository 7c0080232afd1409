"""Views are drawn in other scenes, cut out, compared with their subject, and kept or dropped with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from bootpig.flows.loading import load_config, shipped_configs
from bootpig.models.pretrained.source import PROJECT
from bootpig.models.toy.world import render_scene
from bootpig.stages.augment import Augment
from bootpig.stages.caption.config import CaptionConfig
from bootpig.stages.caption.other_scenes import in_scene, other_scenes, scene_of
from bootpig.stages.caption.stage import Caption
from bootpig.stages.config import PipelineConfig
from bootpig.stages.engine.contract import InputError, Sample
from bootpig.stages.pictures import decode_cut_out
from bootpig.stages.view.painters import Order
from bootpig.stages.view.stage import NO_FIRST_ROUND, View
from tests.stages.samples import cut_out

BASE = PROJECT / "models/toy/checkpoints/stable-diffusion"
BEACH = "on the right on a sandy beach"


def config(*overrides: str) -> PipelineConfig:
    return load_config(shipped_configs()["toy-views"], overrides)


def stage(*overrides: str) -> View:
    made = config(*overrides)
    return View(made.section("view"), made.seed)


class Prepared:
    """Gives the pictures that a test wants, in place of a network."""

    def __init__(self, pictures: Sequence[Image.Image | None]) -> None:
        self.pictures = list(pictures)
        self.orders: list[Order] = []

    def paint(self, orders: Sequence[Order]) -> list[Image.Image | None]:
        self.orders += orders
        return self.pictures[: len(orders)]


def sample(kind: str = "mug", identity: int = 3, id: str = "a" * 16, scenes: Sequence[str] = (BEACH,)) -> Sample:
    made = cut_out(render_scene(id, kind=kind, identity=identity, scene="in a green meadow"), id)
    return Sample(made.id, 0, {**made.meta, "other_scenes": list(scenes)}, made.files)


def picture(kind: str, identity: int, scene: str = "on a sandy beach") -> Image.Image:
    return Image.fromarray(render_scene("view", kind=kind, identity=identity, scene=scene).image)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy base as a BootPIG model that was never trained."""
    import torch

    from bootpig.models.pipelines.bases import load_base
    from bootpig.models.pretrained.source import PIPELINE
    from bootpig.models.pretrained.sources import resolve

    folder = tmp_path_factory.mktemp("trained") / "model"
    pipeline = load_base(resolve("model", str(BASE), None, PIPELINE), torch.float32)
    pipeline.register_to_config(reference_timestep="zero")
    pipeline.save_bootpig(folder, {"base": str(BASE)})
    return folder


@pytest.fixture(scope="module")
def view(trained: Path) -> View:
    made = stage(f"view.model={trained}", "view.steps=2", "view.count=2", "caption.other_scenes=2")
    assert made.check_models() == []
    made.setup()
    return made


def test_a_trained_model_draws_them(view: View) -> None:
    before = view.config
    view.config = before.model_copy(update={"min_identity": -1.0})
    try:
        samples = [sample(), sample("ball", 5, "b" * 16, (BEACH, "on the left on a snowy hill")), sample(scenes=())]
        results = view.process(samples)
        again = view.process(samples)
    finally:
        view.config = before
    assert [result.status for result in results] == ["ok"] * 3, "a sample without views keeps its cut-out"
    assert [len(result.columns["dropped"]) for result in results] == [1, 2, 0]
    for result, given in zip(results, samples, strict=True):
        assert {name: result.files[name] for name in given.files} == given.files
        names = [f"view{k}" for k in range(result.columns["views"])]
        assert set(result.files) == {*given.files, *(f"{n}.{end}" for n in names for end in ("png", "mask.json"))}
    assert [result.files for result in again] == [result.files for result in results]


def test_each_view_is_kept_or_dropped_with_its_reason(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Prepared(
        [picture("mug", 3), picture("boot", 9), None, Image.new("RGB", (64, 64), "white"), picture("mug", 3)]
    )
    monkeypatch.setattr(view, "_painter", painter)
    two = (BEACH, "on the left on a snowy hill")
    results = view.process([sample(scenes=two), sample(id="b" * 16, scenes=two), sample(id="c" * 16)])
    assert [result.columns["views"] for result in results] == [1, 0, 1]
    kept, wrong = results[0].columns["identity"]
    assert kept > 0.8 > wrong and results[0].columns["dropped"][0] == ""
    assert results[0].columns["dropped"][1] in ("other_subject", "low_score", "no_detection")
    assert results[1].columns["dropped"] == ["not_finite", "no_detection"]
    assert results[1].columns["identity"] == [None, None]
    assert decode_cut_out({k.removeprefix("view0."): v for k, v in results[0].files.items() if "view0" in k})
    assert painter.orders[0].prompt == f"A photo of a mug, {BEACH}"
    assert len({order.seed for order in painter.orders}) == 5
    monkeypatch.setattr(view, "config", view.config.model_copy(update={"required": True}))
    monkeypatch.setattr(view, "_painter", Prepared([None]))
    (lost,) = view.process([sample()])
    assert (lost.status, lost.reason) == ("rejected", "no_view") and lost.columns["dropped"] == ["not_finite"]


def test_references_are_made_of_them_in_turn() -> None:
    mug = sample()
    files = {
        **mug.files,
        **{
            f"view{k}.{name}": data
            for k, other in enumerate((sample("ball"), sample("boot")))
            for name, data in other.files.items()
        },
    }
    made = Sample(mug.id, 0, mug.meta, files)

    def drawn(references_from: str, given: Sample) -> list[bytes]:
        augment = config("augment.references=4", f"augment.references_from={references_from}").augment
        augment = augment.model_copy(update={"references_from": references_from})
        (result,) = Augment(augment, 0).process([given])
        return [result.files[f"reference{k}.png"] for k in range(4)]

    def alone(other: Sample) -> list[bytes]:
        return drawn("both", Sample(mug.id, 0, mug.meta, other.files))

    own, ball, boot = alone(mug), alone(sample("ball")), alone(sample("boot"))
    assert drawn("both", made) == [own[0], ball[1], boot[2], own[3]]
    assert drawn("views", made) == [ball[0], boot[1], ball[2], boot[3]]
    assert drawn("views", mug) == own


def test_scenes_come_from_other_captions_of_the_unit() -> None:
    settings = {"count": 8, "objects": ["a mug", "a cup"], "positions": ["on the left"], "scenes": ["here", "there"]}
    plain = Caption(CaptionConfig(**settings), 0)
    given = Caption(CaptionConfig(**settings, other_scenes=3), 0)
    before, after = plain.draw(0, range(8)), given.draw(0, range(8))
    assert [s.id for s in after] == [s.id for s in before], "the same samples"
    assert all("other_scenes" not in s.meta for s in before)
    for each in after:
        own = scene_of(each.meta["caption"])
        assert each.meta["other_scenes"] == [{"on the left here": "on the left there"}.get(own, "on the left here")]
    captions = ["A photo of a mug, on ice", "A photo of a mug", "not a caption", "A photo of a cup, on ice"]
    assert other_scenes(captions, ["1", "2", "3", "4"], 2, 0) == [[], ["on ice"], ["on ice"], []]
    boat = "A photo of a small, red boat"
    assert in_scene(f"{boat}, on a lake", "in a bottle") == f"{boat}, in a bottle"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["view=null"], "references_from: 'both' needs the stage view"),
        (["augment.references_from=cut_out"], "no effect while augment.references_from is cut_out"),
        (["view.count=3"], "view.count: 3 needs as many other scenes"),
        (["view.prompt='a {thing}'"], "only the blanks"),
        (["view.prompt='{object}'"], "every view would show the same scene"),
        (["view.prompt='{caption'"], "literal braces"),
    ],
)
def test_settings_that_do_not_go_together(overrides: list[str], said: str) -> None:
    with pytest.raises((InputError, ValidationError), match=said):
        config(*overrides)


def test_models_that_cannot_draw_views(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=NO_FIRST_ROUND):
        stage().models()
    (line,) = stage(f"view.model={BASE}").check_models()
    assert line.startswith("view.model: ") and "StableDiffusionPipeline" in line and "editing pipeline" in line
    (tmp_path / "bootpig.json").write_text("{}")
    with pytest.raises(ValueError, match="names no base"):
        stage(f"view.model={tmp_path}").models()
