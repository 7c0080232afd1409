"""Configuration of the train stage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from bootpig.stages.engine.contract import ADDED, MODEL, SPEED, StageConfig
from bootpig.stages.engine.device_lock import MAX_PROCESSES
from bootpig.stages.engine.fields import ModelName, Revision
from bootpig.stages.train.subjects import EvaluationConfig


def micro_batch(share: int, limit: int) -> int:
    """The largest divisor of `share` (a rank's part of a batch) that is at most `limit`."""
    return next(size for size in range(min(share, limit), 0, -1) if share % size == 0)


class Trainable(StageConfig):
    """Which weights are trained. Frozen parts are still used: an untrained Reference UNet also provides features."""

    reference: bool = Field(default=True, description="Train the Reference UNet.")
    base: Literal["none", "rsa", "all"] = Field(
        default="rsa",
        description="What to train in the base UNet: nothing, the self-attention layers (paper), or everything.",
    )

    @model_validator(mode="after")
    def _something(self) -> Trainable:
        if not self.reference and self.base == "none":
            raise ValueError("nothing is trained; set reference to true, or set base to rsa or all")
        return self


class TrainConfig(StageConfig):
    """The training recipe. Defaults are from the paper or, if the paper does not say, from the published code."""

    model: ModelName = Field(description="Base model, a diffusers pipeline: a local folder or a hub id.")
    revision: Revision = None
    init_from: str | None = Field(
        default=None,
        json_schema_extra=MODEL,
        description="Folder of a trained model to start from. null: start from the base model.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**62, description="Seed of sample order, noise and dropout. The data set has its own."
    )
    steps: int = Field(default=10_000, ge=1, le=10**9, description="Number of weight updates.")
    global_batch_size: int = Field(default=64, ge=1, le=10**9, description="Samples per update over all devices.")
    per_device_batch_size: int = Field(
        default=4,
        ge=1,
        le=10**9,
        json_schema_extra=SPEED,
        description="Maximum samples per device at once; gradients are accumulated to reach the global batch size.",
    )
    learning_rate_reference: float = Field(default=5e-6, ge=0, le=1, description="Learning rate of the Reference UNet.")
    learning_rate_base: float = Field(
        default=1e-6, ge=0, le=1, description="Learning rate of the trained layers of the base UNet."
    )
    schedule: Literal["constant", "linear_tail"] = Field(
        default="constant", description="Learning rates after warm-up: constant, or with a linear decay at the end."
    )
    warmup_steps: int = Field(
        default=0, ge=0, le=10**9, description="Updates during which the learning rates rise linearly from 0."
    )
    tail_from: float = Field(
        default=0.6, ge=0, le=1, description="linear_tail: fraction of the steps at which the decay starts."
    )
    tail_to: float = Field(
        default=0.03, ge=0, le=1, description="linear_tail: fraction of the learning rates left at the last step."
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="Betas of AdamW, each in [0, 1).")
    weight_decay: float = Field(default=1e-2, ge=0, description="Weight decay of AdamW.")
    eps: float = Field(default=1e-8, gt=0, description="Epsilon of AdamW.")
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw",
        json_schema_extra=ADDED,
        description="AdamW with moments in float32 (paper), or in 8 bits (bitsandbytes), which need a quarter of the "
        "memory; pip install 'bootpig[8bit]'.",
    )
    clip: float = Field(default=1.0, gt=0, description="Maximum norm of the gradients of all trained weights.")
    reference_timestep: Literal["same", "zero"] = Field(
        default="same",
        json_schema_extra=ADDED,
        description="How the Reference UNet reads a reference: noised to the timestep of the target (same, paper), or "
        "without noise at timestep 0 (zero). Saved with the model, which then reads references in this way.",
    )
    drop_caption: float = Field(
        default=0.15,
        ge=0,
        le=1,
        description="Probability that the base UNet gets the empty prompt. The Reference UNet always gets its text.",
    )
    drop_reference: float = Field(default=0.15, ge=0, le=1, description="Probability that the reference is dropped.")
    drop_reference_per: Literal["sample", "step"] = Field(
        default="step",
        description="Drop the reference for each sample separately, or for all samples of an update (published code).",
    )
    timestep_distribution: Literal["uniform", "logit_normal"] = Field(
        default="uniform",
        json_schema_extra=ADDED,
        description="Distribution of the timesteps: uniform (paper), or logit_normal, the sigmoid of a standard normal "
        "number times the number of timesteps (Stable Diffusion 3).",
    )
    min_snr_gamma: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        json_schema_extra=ADDED,
        description="Weight each sample's loss by min(SNR, gamma) / SNR, so that timesteps with little noise do not "
        "dominate (Min-SNR-gamma; 5 is usual). null: no weights (paper).",
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        json_schema_extra=ADDED,
        description="Export an exponential moving average of the trained weights with this decay, such as 0.999. null: "
        "export the weights of the last update (paper).",
    )
    references_per_sample: tuple[int, int] = Field(
        default=(1, 1),
        json_schema_extra=ADDED,
        description="Fewest and most references of a sample in an update. Their number is drawn for each update, and "
        "they are pooled as at inference. [1, 1]: one (paper). The most is limited by augment.references.",
    )
    trainable: Trainable = Field(default=Trainable(), description="Which weights are trained.")
    method: Literal["full", "lora"] = Field(
        default="full",
        json_schema_extra=ADDED,
        description="Train the weights themselves (full, paper), or LoRA adapters beside frozen weights (lora): the "
        "Reference UNet is then the base with one adapter, and its RSA layers have another.",
    )
    lora_rank: int = Field(
        default=16, ge=1, le=4096, json_schema_extra=ADDED, description="lora: rank of the adapters."
    )
    lora_alpha: float | None = Field(
        default=None,
        gt=0,
        le=10**6,
        json_schema_extra=ADDED,
        description="lora: an adapter's output is multiplied by lora_alpha / lora_rank. null: lora_rank.",
    )
    lora_targets: tuple[str, ...] = Field(
        default=("to_q", "to_k", "to_v", "to_out.0"),
        min_length=1,
        json_schema_extra=ADDED,
        description="lora: ends of the names of the layers that get adapters, linear layers or convolutions.",
    )
    key_scale: float = Field(
        default=1.0,
        gt=0,
        le=10,
        description="Factor applied to the reference features that make the keys. The published code uses 1.1.",
    )
    mixed_precision: Literal["no", "bf16"] = Field(
        default="bf16", description="bf16: compute in bfloat16, keep weights and optimizer moments in float32."
    )
    num_processes: int | Literal["auto"] = Field(
        default="auto",
        json_schema_extra=SPEED,
        description="Processes on this machine that train together, each on a device of its own. auto: one for each "
        "GPU, as far as global_batch_size can be divided among them; one on a CPU. Under torchrun, its number counts.",
    )
    shard: Literal["none", "fsdp"] = Field(
        default="none",
        json_schema_extra=SPEED,
        description="none: every process holds all weights (DDP). fsdp: weights, gradients and optimizer state are "
        "shared out among the processes (FSDP2), for full training of bases that do not fit one device.",
    )
    shuffle_window: int = Field(
        default=4096,
        ge=1,
        le=10**9,
        description="Samples shuffled together. About two such windows are kept in memory.",
    )
    validation: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        json_schema_extra=ADDED,
        description="Fraction of the samples that are never trained on, chosen by their ids. The log compares their "
        "loss with the reference and without. 0: none.",
    )
    validate_every: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        json_schema_extra=SPEED,
        description="Updates between validations. null: as often as takes about 2 % of the training.",
    )
    gradient_checkpointing: bool = Field(
        default=False, json_schema_extra=SPEED, description="Use less memory at the cost of a second forward pass."
    )
    cache_bytes: int = Field(
        default=2**31,
        ge=0,
        le=2**50,
        json_schema_extra=SPEED,
        description="Memory in bytes for decoded shards that are not in use.",
    )
    num_workers: int = Field(
        default=2,
        ge=0,
        le=64,
        json_schema_extra=SPEED,
        description="Threads that read and decode shards ahead of time.",
    )
    checkpoint_every: int = Field(
        default=500, ge=1, le=10**9, json_schema_extra=SPEED, description="Updates between checkpoints."
    )
    evaluate_every: int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        json_schema_extra=SPEED,
        description="Updates between drawings of the subjects of `evaluation`, whose scores go into the log. They are "
        "also drawn before the first update and after the last. null: never. Changes the model only with keep: best.",
    )
    evaluation: EvaluationConfig | None = Field(
        default=None,
        json_schema_extra=SPEED,
        description="The subjects for `evaluate_every` and how they are drawn and judged. Not those of evaluate.",
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        json_schema_extra=ADDED,
        description="Export the weights after the last update (paper), or the best of those that were evaluated: the "
        "highest DINO with a CLIP-T of at least 0.98 of text only's.",
    )
    sample_every: int = Field(
        default=0,
        ge=0,
        le=10**9,
        json_schema_extra=SPEED,
        description="Updates between sample pictures; 0 disables them. Affects the log only, not the model.",
    )
    log_every: int = Field(
        default=10,
        ge=1,
        le=10**9,
        json_schema_extra=SPEED,
        description="Updates between log lines. Affects the log only, not the model.",
    )
    trackers: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = Field(
        default=("tensorboard",),
        json_schema_extra=SPEED,
        description="Experiment trackers that get the values of the log while training runs, see docs/training.md. "
        "Affects the log only, not the model.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        problems = []
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas: {list(self.betas)} must each be in [0, 1)")
        if self.warmup_steps >= self.steps:
            problems.append(f"warmup_steps: {self.warmup_steps} must be less than steps, {self.steps}")
        fewest, most = self.references_per_sample
        if not 1 <= fewest <= most:
            problems.append(f"references_per_sample: [{fewest}, {most}] must be from 1 on, and the first no more")
        ignored = self.changed(["tail_from", "tail_to"])
        if self.schedule == "constant" and ignored:
            problems.append(
                f"{', '.join(ignored)}: no effect while schedule is constant; set schedule to linear_tail or remove it"
            )
        if self.method == "full" and (ignored := self.changed(["lora_rank", "lora_alpha", "lora_targets"])):
            problems.append(f"{', '.join(ignored)}: no effect while method is full; set method to lora or remove it")
        if len(set(self.trackers)) < len(self.trackers):
            problems.append(f"trackers: {', '.join(self.trackers)} names one of them twice; remove one")
        if self.validate_every is not None and not self.validation:
            problems.append("validate_every: no effect without held-out samples; set validation, such as 0.05")
        problems += self._evaluation_problems()
        if isinstance(self.num_processes, int):
            if not 1 <= self.num_processes <= MAX_PROCESSES:
                problems.append(f"num_processes: {self.num_processes} must be auto or from 1 to {MAX_PROCESSES}")
            elif self.global_batch_size % self.num_processes:
                problems.append(
                    f"num_processes: {self.num_processes} does not divide global_batch_size, {self.global_batch_size}"
                )
        if self.shard == "fsdp" and self.method == "lora":
            problems.append("shard: fsdp shards trained weights, which are small with method lora; set shard to none")
        if self.shard == "fsdp" and self.optimizer == "adamw_8bit":
            problems.append(
                "shard: fsdp does not work with optimizer adamw_8bit; set optimizer to adamw, or shard to none"
            )
        if self.shard == "fsdp" and self.drop_reference_per == "sample" and self.drop_reference:
            problems.append(
                "shard: fsdp needs the same networks on all processes in every update; set drop_reference_per to step"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _evaluation_problems(self) -> list[str]:
        problems = []
        if self.evaluate_every is None:
            if self.keep == "best":
                problems.append("keep: best needs scores to choose by; set evaluate_every, such as 500, or keep: last")
            return problems
        if self.evaluation is None:
            problems.append("evaluate_every: has no subjects to draw; set evaluation.subjects to a folder of subjects")
        if self.evaluate_every > self.steps:
            problems.append(f"evaluate_every: {self.evaluate_every} is more than steps, {self.steps}; lower it")
        if self.shard == "fsdp":
            problems.append("evaluate_every: cannot draw with sharded weights; set shard to none, or remove it")
        return problems

    def hashed(self) -> dict[str, Any]:
        fields = super().hashed()
        if self.keep == "best":  # the scores then decide which weights are exported
            assert self.evaluation is not None
            fields |= {"evaluate_every": self.evaluate_every, "evaluation": self.evaluation.hashed()}
        return fields
