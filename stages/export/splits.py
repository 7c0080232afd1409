"""Assigns samples to splits by a hash of their id, so that a sample stays in its split when the data set grows."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bootpig.stages.engine.contract import InputError

TRAIN = "train"
"""The split of all samples that are in no other."""


@dataclass(frozen=True)
class Splits:
    """The named splits besides `train`, as (name, fraction of the samples), in the order in which they were given.

    A split added at the end takes its samples from `train` only.
    """

    fractions: tuple[tuple[str, float], ...] = ()

    @classmethod
    def parse(cls, given: Sequence[str]) -> Splits:
        """Parse values of the form `validation=0.02`.

        Raises:
            InputError: a name or fraction cannot be used, a name repeats, or nothing is left for `train`.
        """
        fractions: dict[str, float] = {}
        for text in given:
            name, _, value = text.partition("=")
            if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name in (TRAIN, "all"):
                raise InputError(
                    f"--split: {text!r} → write NAME=FRACTION, such as validation=0.02; a name has letters, digits and "
                    f"_, and is not {TRAIN} (the rest) or all"
                )
            try:
                fraction = float(value)
            except ValueError:
                fraction = math.nan
            if not 0 < fraction < 1:
                raise InputError(f"--split: {text!r} → the fraction must be above 0 and below 1, such as {name}=0.02")
            if name in fractions:
                raise InputError(f"--split: {text!r} → {name} is given twice; give it once")
            fractions[name] = fraction
        if sum(fractions.values()) >= 1:
            raise InputError(f"--split: the fractions add up to {sum(fractions.values()):g} → leave some for {TRAIN}")
        return cls(tuple(fractions.items()))

    @property
    def names(self) -> tuple[str, ...]:
        return (TRAIN, *(name for name, _ in self.fractions))

    def of(self, sample_id: str) -> str:
        """The split of a sample: the first whose cumulative fraction is above the hash of the id, else `train`."""
        hashed = hashlib.sha256(f"split/{sample_id}".encode()).digest()
        place = int.from_bytes(hashed[:8], "big") / 2**64
        bound = 0.0
        for name, fraction in self.fractions:
            bound += fraction
            if place < bound:
                return name
        return TRAIN
