"""The stages in the order of the DAG."""

from __future__ import annotations

from stages.augment import Augment
from stages.base import MapStage, Stage
from stages.caption import Caption
from stages.encode import Encode
from stages.evaluate import Evaluate
from stages.segment import Segment
from stages.synthesize import Synthesize
from stages.train import Train

STAGES: dict[str, type[Stage]] = {
    stage.name: stage for stage in (Caption, Synthesize, Segment, Augment, Encode, Train, Evaluate)
}

MAP_STAGES = tuple(name for name, stage in STAGES.items() if issubclass(stage, MapStage))
"""The stages that are cut into units."""
