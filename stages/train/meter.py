"""Measures how fast a training is, how much memory it takes, and how much of a GPU's arithmetic it uses (MFU)."""

from __future__ import annotations

import re
import time

import torch

from bootpig.models.memory import peak_memory, reset_peak_memory
from bootpig.models.pretrained import sizes
from bootpig.stages.train.config import TrainConfig

VARYING = ("samples_per_second", "peak_memory_bytes", "mfu")
"""The values of a log line that differ between equal runs."""

PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500),
    ("B200", 2250),
    ("GH200|H200", 989),
    ("H100 PCIe", 756),
    ("H100 NVL", 835),
    ("H100|H800", 989),
    ("A100|A800", 312),
    ("A40", 149.7),
    ("A30", 165),
    ("A10", 125),
    ("L40S", 362),
    ("L40", 181),
    ("L4", 121),
    ("RTX 6000 Ada", 364),
    ("RTX A6000", 154.8),
    (r"RTX 5090(?! D\b)", 209.5),
    (r"RTX 4090(?! D\b)", 165.2),
    ("RTX 3090", 71),
    ("MI325X|MI300X", 1307),
    ("MI250X", 191.5),
)
"""Words of a device's name, as a regular expression → 10^12 operations per second in bfloat16 with float32 sums,
without sparsity. The first match counts. From NVIDIA's data sheets of each data center GPU, its whitepapers of GA102,
Ada and RTX Blackwell, and AMD's data sheets; of an MI250X, one of its two devices."""

BASE_PASSES = {"none": 2.1, "rsa": 2.2, "all": 3.0}
"""Operations of the base UNet in an update, in forward passes of it, by what is trained: one pass forward, one for the
gradients of its activations, and the rest for those of its weights. Counted by FlopCounterMode at SD 2.1's size, as
those below."""
REFERENCE_PASSES = {True: 3.0, False: 1.0}
"""Likewise of the Reference UNet, by whether it is trained."""
RSA_PASSES = 0.4
"""Likewise of the reference tokens in the RSA layers."""
ADAPTED_PASSES = 2.15
"""Likewise of a network with adapters, of rank 16."""


def peak_tflops(device: str) -> float | None:
    """10^12 bfloat16 operations per second that a device can do at most, by its name. None if it is not known."""
    if re.search(r"\b(?:Laptop|Max-Q|MIG)\b", device):  # less than the whole card of that name
        return None
    return next((peak for words, peak in PEAK_TFLOPS if re.search(rf"\b(?:{words})\b", device)), None)


def sample_tflop(config: TrainConfig, pixels: float) -> float:
    """10^12 operations of an update per sample, on average over updates with and without references.

    What gradient checkpointing repeats does not count.

    Args:
        config: the recipe.
        pixels: of a picture.
    """
    trained, lora = config.trainable, config.method == "lora"
    base = ADAPTED_PASSES if lora and trained.base != "none" else BASE_PASSES[trained.base]
    reference = ADAPTED_PASSES if lora and trained.reference else REFERENCE_PASSES[trained.reference]
    references = (1 - config.drop_reference) * sum(config.references_per_sample) / 2
    return (base + references * (reference + RSA_PASSES)) * sizes.unet_tflop(config.model, pixels)


class Meter:
    """Measures from the last call of `restart` or `read` to the next.

    Args:
        config: the recipe.
        pixels: of a picture, roughly.
        device: where this process trains.
        processes: number of processes that train together.
    """

    def __init__(self, config: TrainConfig, pixels: float, device: torch.device, processes: int) -> None:
        self.batch_size = config.global_batch_size
        self.device = device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = peak_tflops(name) if config.mixed_precision == "bf16" else None
        self.full_rate = None if peak is None else processes * peak / sample_tflop(config, pixels)
        """Samples per second if the devices did nothing but multiply. None if their peak is not known."""
        reset_peak_memory(device)
        self.restart(0)

    def restart(self, step: int) -> None:
        self._began, self._step = time.monotonic(), step

    def pause(self, seconds: float) -> None:
        """Leave out time that went into something else."""
        self._began += seconds

    def read(self, step: int) -> dict[str, float]:
        """For the log after `step` updates: `samples_per_second` over all processes, `peak_memory_bytes` of this
        process (see `models.memory.peak_memory`) and, if the devices' peak is known, `mfu` in [0, 1]: the share of it
        that the training uses."""
        rate = (step - self._step) * self.batch_size / (time.monotonic() - self._began)
        self.restart(step)
        found = {"samples_per_second": round(rate, 2), "peak_memory_bytes": peak_memory(self.device)}
        return found if self.full_rate is None else {**found, "mfu": round(rate / self.full_rate, 4)}
