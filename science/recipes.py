"""Settings of the other methods' trainings, and the grids that `python -m science tune` tries on validation subjects.

Everything else is each method's usual recipe, as in diffusers' and the authors' examples, with learning rates and numbers
of updates for networks of the toy world's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

BASE = "models/toy/checkpoints/stable-diffusion"
CLIP = "models/toy/checkpoints/clip"
DINO = "models/toy/checkpoints/dino"


@dataclass(frozen=True)
class Recipe:
    """What is tuned."""

    updates: int
    learning_rate: float

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class AdapterRecipe(Recipe):
    """That of the IP-Adapter."""

    scale: float
    """At inference."""


RECIPES: Mapping[str, Recipe] = {
    "dreambooth": Recipe(200, 5e-5),
    "dreambooth-lora": Recipe(200, 1e-3),
    "textual-inversion": Recipe(300, 5e-3),
    "ip-adapter": AdapterRecipe(500, 3e-4, 1.0),
}
"""Method → the recipe in use. Where science/tuning.json has a choice, it is that one, which a test checks."""


def grid(method: str) -> Sequence[Recipe]:
    """The recipes to try."""
    rates = {
        "dreambooth": (2e-5, 5e-5, 1e-4),
        "dreambooth-lora": (3e-4, 1e-3, 3e-3),
        "textual-inversion": (2e-3, 5e-3, 2e-2),
    }
    if method == "ip-adapter":
        base = RECIPES[method]
        return [replace(base, scale=scale) for scale in (0.6, 0.8, 1.0)]  # type: ignore[call-arg]
    return [Recipe(updates, rate) for updates in (100, 200, 400) for rate in rates[method]]
