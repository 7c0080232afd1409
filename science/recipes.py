"""Settings of the other methods, and the grids that `python -m science tune` tries on validation subjects.

Everything else is each method's usual recipe, as in diffusers' and the authors' examples, with learning rates and
numbers of updates for networks of the toy world's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

BASE = "models/toy/checkpoints/stable-diffusion"
CLIP = "models/toy/checkpoints/clip"
"""The IP-Adapter's image encoder. Not the judge, whose space would then be learned."""
CLIP_JUDGE = "models/toy/checkpoints/clip-judge"
DINO = "models/toy/checkpoints/dino"
RUN = "configs/toy.yaml"
"""The run whose triplets the IP-Adapter is trained on."""

DRAWING = ("guidance_scale", "scale")
"""Settings of a recipe that change pictures, not training."""


@dataclass(frozen=True)
class Recipe:
    """What is tuned."""

    updates: int
    learning_rate: float
    guidance_scale: float
    """At inference, as in science/rivals.yaml."""
    scale: float | None = None
    """At inference, the weight of the IP-Adapter."""
    prior_loss_weight: float | None = None
    """Of DreamBooth: the weight of the loss on pictures of the class. 0: there are none, without prior preservation."""

    def of_training(self) -> dict[str, Any]:
        """What the trained weights depend on."""
        return {name: value for name, value in asdict(self).items() if name not in DRAWING and value is not None}

    def __str__(self) -> str:
        values = {name.replace("_", " "): value for name, value in asdict(self).items() if value is not None}
        return ", ".join(f"{name} {value:g}" for name, value in values.items())


RECIPES: Mapping[str, Recipe] = {
    "dreambooth": Recipe(200, 4.5e-4, 2.0, prior_loss_weight=0.0),
    "dreambooth-lora": Recipe(400, 3e-3, 2.0, prior_loss_weight=0.0),
    "textual-inversion": Recipe(300, 6.7e-4, 4.0),
    "ip-adapter": Recipe(700, 3e-4, 7.0, 1.4),
}
"""Method → the recipe in use. Where science/tuning.json has a choice, it is that one; a test checks it. The updates of
the IP-Adapter take as long as BootPIG's training, and are not tuned."""

PRIOR_LOSS_WEIGHTS = {"dreambooth": (1.0, 0.0), "dreambooth-lora": (1.0, 0.0)}
"""Method → the weights of the class that are tried first, with the recipe of `RECIPES`: the published one, and without
prior preservation."""
RATES = {
    "dreambooth": (2e-5, 5e-5, 1.5e-4),
    "dreambooth-lora": (3e-4, 1e-3, 3e-3),
    "textual-inversion": (2e-3, 5e-3, 1.5e-2),
    "ip-adapter": (3e-4, 1e-3),
}
"""Method → the learning rates that are tried."""
STEP = 3.0
"""If the best learning rate is the lowest or the highest that was tried, one that is lower or higher by this factor is
tried too."""
MOST_RATES = 5
UPDATES = {"dreambooth": (100, 400), "dreambooth-lora": (100, 400), "textual-inversion": (150, 600), "ip-adapter": ()}
"""Method → the numbers of updates that are tried with the best learning rate, beside that of `RECIPES`."""
GUIDANCE = (2.0, 4.0, 7.0)
SCALES = {"ip-adapter": (0.7, 1.0, 1.4)}


def drawings(method: str, trained: Recipe) -> Sequence[Recipe]:
    """The recipes that draw with the same trained weights, in all ways that are tried."""
    return [
        replace(trained, guidance_scale=guidance, scale=scale)
        for guidance in GUIDANCE
        for scale in SCALES.get(method, (None,))
    ]


def next_rate(rates: Sequence[float], best: float) -> float | None:
    """The learning rate to try next, or None if there are better ones tried on both sides, or enough of them."""
    if len(rates) >= MOST_RATES or min(rates) < best < max(rates):
        return None
    return float(f"{best / STEP if best == min(rates) else best * STEP:.1e}")
