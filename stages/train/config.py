"""The settings of the train stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from bootpig.stages.engine.contract import MODEL, SPEED, StageConfig
from bootpig.stages.engine.fields import ModelName, Revision


class Trainable(StageConfig):
    """What is trained. What is frozen still takes part: an untrained Reference UNet yields features too."""

    reference: bool = Field(default=True, description="The Reference UNet.")
    base: Literal["none", "rsa", "all"] = Field(
        default="rsa", description="Of the base UNet: nothing, its self-attention layers (the paper), or everything."
    )

    @model_validator(mode="after")
    def _something(self) -> Trainable:
        if not self.reference and self.base == "none":
            raise ValueError("nothing is trained; set reference to true, or base to rsa or all")
        return self


class TrainConfig(StageConfig):
    """The recipe. Defaults are the paper's; where it is silent, the published code's."""

    model: ModelName = Field(description="Base pipeline in diffusers' format: a folder or a hub id.")
    revision: Revision = None
    init_from: str | None = Field(
        default=None, json_schema_extra=MODEL, description="A trained model's folder to go on from; null: the base."
    )
    seed: int = Field(default=0, ge=0, lt=2**62, description="Of the order, noise and dropouts; the data has its own.")
    steps: int = Field(default=10_000, ge=1, description="Updates of the weights.")
    global_batch_size: int = Field(default=64, ge=1, description="Samples an update, over all devices.")
    per_device_batch_size: int = Field(
        default=4,
        ge=1,
        json_schema_extra=SPEED,
        description="Samples a device holds at once, at most; gradients are accumulated up to the global batch.",
    )
    learning_rate_reference: float = Field(default=5e-6, ge=0, le=1, description="Of the Reference UNet.")
    learning_rate_base: float = Field(default=1e-6, ge=0, le=1, description="Of what is trained in the base UNet.")
    schedule: Literal["constant", "linear_tail"] = Field(
        default="constant", description="Learning rates after the warm-up: constant, or falling linearly at the end."
    )
    warmup_steps: int = Field(default=0, ge=0, description="Updates over which the rates rise linearly from 0.")
    tail_from: float = Field(default=0.6, ge=0, le=1, description="linear_tail: fraction of the steps where it begins.")
    tail_to: float = Field(default=0.03, ge=0, le=1, description="linear_tail: fraction of the rates at the last step.")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's, each in [0, 1).")
    weight_decay: float = Field(default=1e-2, ge=0, description="AdamW's.")
    eps: float = Field(default=1e-8, gt=0, description="AdamW's.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of all gradients together.")
    drop_caption: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="Chance that the base sees the empty prompt; the Reference UNet keeps its own.",
    )
    drop_reference: float = Field(default=0.15, ge=0, le=1, description="Chance that the reference is left out.")
    drop_reference_per: Literal["sample", "step"] = Field(
        default="step", description="The reference is left out for single samples, or for all of an update (published)."
    )
    trainable: Trainable = Field(default=Trainable(), description="What is trained.")
    key_scale: float = Field(
        default=1.0, gt=0, le=10, description="Factor on reference features before the keys; published code: 1.1."
    )
    mixed_precision: Literal["no", "bf16"] = Field(
        default="bf16", description="bf16: bfloat16 arithmetic, float32 weights and moments."
    )
    shuffle_window: int = Field(
        default=4096, ge=1, description="Samples shuffled together; about two such windows are held in memory."
    )
    gradient_checkpointing: bool = Field(
        default=False, json_schema_extra=SPEED, description="Less memory for a second forward pass."
    )
    cache_bytes: int = Field(
        default=2**31,
        ge=0,
        json_schema_extra=SPEED,
        description="Memory for decoded shards beyond those in use, bytes.",
    )
    num_workers: int = Field(
        default=2, ge=0, le=64, json_schema_extra=SPEED, description="Threads that read and decode ahead."
    )
    checkpoint_every: int = Field(
        default=500, ge=1, json_schema_extra=SPEED, description="Updates between checkpoints."
    )
    sample_every: int = Field(
        default=0,
        ge=0,
        json_schema_extra=SPEED,
        description="Updates between pictures of samples; 0: none. Changes what is logged, never the model.",
    )
    log_every: int = Field(
        default=10,
        ge=1,
        json_schema_extra=SPEED,
        description="Updates between lines of the log. Changes what is logged, never the model.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        problems = []
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas: {list(self.betas)} must each lie in [0, 1)")
        if self.warmup_steps >= self.steps:
            problems.append(f"warmup_steps: {self.warmup_steps} must be below steps, {self.steps}")
        ignored = self.changed(["tail_from", "tail_to"])
        if self.schedule == "constant" and ignored:
            problems.append(f"{', '.join(ignored)}: without effect while schedule is constant; set linear_tail")
        if problems:
            raise ValueError("; ".join(problems))
        return self
