"""Caption sources: a seeded grammar, a text file, an LLM. Each returns the captions for a range of positions."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from bootpig.stages.caption.config import CaptionConfig
from bootpig.stages.caption.phrases import object_phrase
from bootpig.stages.engine.contract import InputError, SourceContext, Status
from bootpig.stages.text_files import read_lines


@dataclass(frozen=True)
class Draft:
    """A caption as its source gives it."""

    caption: str
    status: Status = "ok"
    """Not `ok`: the source itself has rejected it, or could not get it."""
    reason: str = ""
    message: str = ""


class CaptionSource(Protocol):
    """A source of captions, created from (config, seed)."""

    def __init__(self, config: CaptionConfig, seed: int) -> None: ...

    def check(self) -> None:
        """Raises InputError if the source has no captions. Changes nothing."""

    def check_ready(self) -> None:
        """Raises InputError if something needed to get captions, such as an API key, is missing."""

    def captions(self, unit: int, indices: range, context: SourceContext | None) -> list[Draft]:
        """The captions at `indices`; fewer if the source has no more."""

    def digest(self, indices: range) -> str:
        """Digest of what these captions depend on besides the config; empty if nothing."""


class GrammarSource:
    """Fills each blank of the template with a random entry of its list, seeded by (seed, unit, index)."""

    def __init__(self, config: CaptionConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    def check(self) -> None:
        """Nothing to do: the config's validation has checked the lists."""

    def check_ready(self) -> None:
        """Nothing to do."""

    def captions(self, unit: int, indices: range, context: SourceContext | None) -> list[Draft]:
        return [Draft(self._caption(unit, index)) for index in indices]

    def digest(self, indices: range) -> str:
        return ""

    def _caption(self, unit: int, index: int) -> str:
        rng = random.Random(f"{self.seed}/caption/{unit}/{index}")
        return self.config.template.format(
            object=rng.choice(self.config.objects),
            position=rng.choice(self.config.positions or [""]),
            scene=rng.choice(self.config.scenes or [""]),
        )


class FileSource:
    """Reads a UTF-8 text file with one caption per line. Blank lines are skipped; position k is the k-th caption."""

    def __init__(self, config: CaptionConfig, seed: int) -> None:
        assert config.file is not None
        self.path = Path(os.path.expanduser(config.file))
        self.count = config.count

    def check(self) -> None:
        if self.count > len(self._lines):
            raise InputError(
                f"caption.count: {self.count} is more than the {len(self._lines)} captions of {str(self.path)!r}; "
                "lower it or add captions"
            )

    def check_ready(self) -> None:
        """Nothing to do: `check` reads the file."""

    def captions(self, unit: int, indices: range, context: SourceContext | None) -> list[Draft]:
        self.check()
        return [Draft(line) for line in self._lines[indices.start : indices.stop]]

    def digest(self, indices: range) -> str:
        lines = self._lines[indices.start : indices.stop]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def _lines(self) -> list[str]:
        name = repr(str(self.path))
        numbered = read_lines("caption.file", self.path, "give a text file with one caption per line")
        if not numbered:
            raise InputError(f"caption.file: {name} contains no captions; write one caption per line")
        if not any(object_phrase(line) for _, line in numbered):
            first, text = numbered[0]
            raise InputError(
                f"caption.file: {name}, line {first}: {text[:80]!r} has no object phrase, nor does any other line; "
                "write captions as 'A photo of a <object>, <position> <scene>'"
            )
        return [line for _, line in numbered]
