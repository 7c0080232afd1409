"""The graph of a run's stages: which ones take part, and what each of them reads."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from bootpig.stages.engine.contract import InputError, MapStage, Stage


@dataclass(frozen=True)
class Graph:
    """The stages of one configuration, ordered so that each comes after the stages that it reads."""

    stages: Mapping[str, type[Stage]]
    upstream: Mapping[str, tuple[str, ...]]
    """Stage → the stages that it reads, in order. Empty for a source."""

    @classmethod
    def of(cls, stages: Mapping[str, type[Stage]], left_out: Container[str] = ()) -> Graph:
        """The graph of `stages` without those that are left out.

        If the first upstream of a stage is left out, the first upstream of that one replaces it. Any other upstream
        that is left out is not read.

        Args:
            stages: by name, each after the stages in its `upstream`.
            left_out: optional stages that the configuration does not have.

        Raises:
            ValueError: a stage reads one that does not come before it, a map stage reads a reduce stage, or a stage
                that is not a source has nothing left to read.
        """
        upstream: dict[str, tuple[str, ...]] = {}
        for name, stage in stages.items():
            if unknown := [above for above in stage.upstream if above not in upstream]:
                raise ValueError(f"{name}: reads {unknown[0]!r}, which does not come before it")
            first, rest = stage.upstream[:1], [above for above in stage.upstream[1:] if above not in left_out]
            if first and first[0] in left_out:
                first = upstream[first[0]][:1]
            upstream[name] = tuple(dict.fromkeys([*first, *rest]))
        active = {name: stage for name, stage in stages.items() if name not in left_out}
        for name, stage in active.items():
            if stage.upstream and not upstream[name]:
                raise ValueError(f"{name}: all stages that it reads are left out ({', '.join(stage.upstream)})")
            reduces = [above for above in upstream[name] if not issubclass(stages[above], MapStage)]
            if issubclass(stage, MapStage) and reduces:
                raise ValueError(f"{name}: a map stage cannot read {reduces[0]!r}, which makes one result")
        return cls(active, {name: upstream[name] for name in active})

    def is_map(self, name: str) -> bool:
        """Whether a stage is a map stage, which is divided into units."""
        return issubclass(self.stages[name], MapStage)

    def maps(self) -> tuple[str, ...]:
        return tuple(name for name in self.stages if self.is_map(name))

    def above(self, names: Iterable[str]) -> tuple[str, ...]:
        """`names` and all stages that they read, directly or not, in order."""
        wanted = set(names)
        for name in reversed(list(self.stages)):
            if name in wanted:
                wanted.update(self.upstream[name])
        return tuple(name for name in self.stages if name in wanted)

    def below(self, name: str) -> tuple[str, ...]:
        """`name` and all stages that read it, directly or not, in order."""
        found = {name}
        for other in self.stages:
            if found & set(self.upstream[other]):
                found.add(other)
        return tuple(other for other in self.stages if other in found)

    def span(self, first: str | None = None, until: str | None = None) -> tuple[str, ...]:
        """The stages from `first` to `until`, both included: those that depend on `first` and that `until` depends on.

        Raises:
            InputError: `until` does not depend on `first`.
        """
        below = self.below(first) if first else tuple(self.stages)
        above = self.above([until]) if until else tuple(self.stages)
        chosen = tuple(name for name in below if name in above)
        if not chosen:
            raise InputError(f"until: {until!r} → does not depend on {first!r}; the order is {', '.join(self.stages)}")
        return chosen
