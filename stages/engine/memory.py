"""The memory that a stage needs on its device, and the cards that have as much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

CARDS = (16, 24, 48, 80)
"""Memory of common cards in GiB."""

RESERVED_BYTES = 2**30
"""For the CUDA context and the workspaces of its libraries."""
FRAGMENTED = 1.05
"""PyTorch's allocator takes some more from the card than the tensors need."""

ASSUMPTION = (
    f"memory: a card needs {FRAGMENTED - 1:.0%} and {RESERVED_BYTES / 2**30:.0f} GiB more than its tensors take"
)

Basis = Literal["computed", "scaled", "estimated", "unknown", "no device"]


@dataclass(frozen=True)
class Memory:
    """Peak memory of a stage on one device."""

    bytes: float | None
    """All tensors that exist at the same time. None: unknown."""
    basis: Basis
    """computed: for exactly these settings. scaled: from those of another rank, size or number of references.
    estimated: weights and a rough figure for activations. no device: the stage runs no networks."""

    def fits(self) -> list[int]:
        """The sizes of the cards in `CARDS` on which it runs. Empty if that is unknown."""
        if self.bytes is None:
            return []
        needed = self.bytes * FRAGMENTED + RESERVED_BYTES
        return [size for size in CARDS if needed <= size * 2**30]

    def facts(self) -> dict[str, Any]:
        """For `plan --json`."""
        size = None if self.bytes is None else round(self.bytes)
        return {"bytes": size, "basis": self.basis, "fits_gib": self.fits()}

    def __str__(self) -> str:
        if self.bytes is None:
            return "unknown"
        if not self.bytes:
            return "–"
        cards = self.fits()
        return f"{self.bytes / 2**30:.1f} → {f'{cards[0]} GB' if cards else 'none'}"


NO_DEVICE = Memory(0.0, "no device")
UNKNOWN = Memory(None, "unknown")
