"""The validation subjects that a model in training draws: settings, and checks before any work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from bootpig.models.pretrained.source import local_path
from bootpig.stages.engine.contract import InputError
from bootpig.stages.engine.fields import BatchSize
from bootpig.stages.evaluate.protocol import Protocol, ProtocolConfig
from bootpig.stages.evaluate.subjects import Subject
from bootpig.stages.picture_files.folders import folders_of_pictures, picture_paths
from bootpig.storage.fingerprint import file_digest

SECTION = "train.evaluation"
"""The section of the configuration, for messages. Also the beginning of its models' names, without `train`."""


class EvaluationConfig(ProtocolConfig):
    """Which subjects a model in training draws, how, and which models judge the pictures. As in evaluate, but on fewer
    subjects, and never on those of evaluate."""

    count: int = Field(
        default=8, ge=1, le=10_000, description="Number of subjects to draw, spread evenly over the folder by name."
    )
    images_per_prompt: int = Field(default=1, ge=1, le=100, description="Pictures per caption.")
    batch_size: BatchSize = 4


class ValidationSubjects(Protocol):
    """The judges and the subjects of `train.evaluation`."""

    config: EvaluationConfig

    def __init__(self, config: EvaluationConfig) -> None:
        super().__init__(config, SECTION)

    def subjects(self) -> list[Subject]:
        """The subjects to draw.

        Raises:
            InputError: the folder cannot be used, or has too few subjects.
        """
        found, count = super().subjects(), self.config.count
        if count > len(found):
            raise InputError(
                f"{SECTION}.count: {count} is more than the {len(found)} subjects of {self.config.subjects!r}; lower "
                "it, or add subjects"
            )
        return [found[index * len(found) // count] for index in range(count)]

    def passes(self, steps: int, every: int) -> float:
        """Passes of a UNet for all drawings of a training of `steps` updates; 0 if the folder cannot be used. A step
        takes 2 without a reference, and 3 and one of the Reference UNet with one."""
        try:
            captions = sum(len(subject.prompts) for subject in self.subjects())
        except InputError:
            return 0.0
        drawings = 4 * (1 + -(-steps // every)) + 2
        return float(captions * self.config.images_per_prompt * self.config.steps * drawings)


def shared_problems(config: EvaluationConfig, evaluated: str) -> list[str]:
    """Why the subjects cannot be drawn in training because evaluate has them too, in one line. Empty if there is no
    reason, or a folder cannot be read, which other checks report.

    Args:
        evaluated: the folder `evaluate.subjects`.
    """
    own, other = local_path(config.subjects), local_path(evaluated)
    if own is None or other is None:
        return []
    try:
        if own.samefile(other):
            what = "is the folder of evaluate.subjects"
        elif shared := _shared(own, other):
            more = f" and {len(shared) - 1} more" if len(shared) > 1 else ""
            what = f"has pictures of evaluate.subjects, such as those of {shared[0]}{more}"
        else:
            return []
    except OSError:
        return []
    return [
        f"{SECTION}.subjects: {config.subjects!r} {what}; a training that is watched and chosen by the subjects of its "
        "evaluation looks better than it is, so give other subjects"
    ]


def _shared(own: Path, other: Path) -> list[str]:
    """The subjects of `own` that have a picture which is also in `other`, whatever its name there."""
    mine = [(path, path.stat().st_size) for path in _pictures(own)]
    theirs = [(path, path.stat().st_size) for path in _pictures(other)]
    sizes = {size for _, size in mine} & {size for _, size in theirs}  # most pictures need not be read
    digests = {file_digest(path) for path, size in theirs if size in sizes}
    return sorted({path.parent.name for path, size in mine if size in sizes and file_digest(path) in digests})


def _pictures(folder: Path) -> Iterator[Path]:
    for subject in folders_of_pictures(folder):
        yield from picture_paths(subject)[0]
