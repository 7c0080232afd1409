"""The list of all stages, each one after the stages that it reads."""

from __future__ import annotations

from bootpig.stages.augment import Augment
from bootpig.stages.caption.stage import Caption
from bootpig.stages.encode import Encode
from bootpig.stages.engine.contract import MapStage, Stage
from bootpig.stages.evaluate.stage import Evaluate
from bootpig.stages.real_pictures.stage import Pictures
from bootpig.stages.score.stage import Score
from bootpig.stages.segment.stage import Segment
from bootpig.stages.select.stage import Select
from bootpig.stages.synthesize.stage import Synthesize
from bootpig.stages.train.stage import Train
from bootpig.stages.view.stage import View

# select comes before the stages that cost most, so that a threshold that drops everything is found before them
STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (Caption, Synthesize, Pictures, Segment, View, Score, Select, Augment, Encode, Train, Evaluate)
}

MAP_STAGES = tuple(name for name, stage in STAGES.items() if issubclass(stage, MapStage))
"""The stages whose work is split into units."""
