"""The train stage: trains the Reference UNet and the base model's RSA layers on the encoded data, exports the model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bootpig.models.pipelines.base_check import base_problems
from bootpig.models.pretrained import sizes
from bootpig.models.pretrained.inspection import pipeline_problems, trained_problems
from bootpig.models.pretrained.lora_sizes import lora_parameters
from bootpig.models.pretrained.source import BASE, PIPELINE, ModelSource, loading, local_path
from bootpig.models.pretrained.sources import resolve, resolve_all
from bootpig.stages.engine.checkpoints import CHECKPOINTS_KEPT
from bootpig.stages.engine.contract import InputError, Progress, ReduceInput, ReduceStage
from bootpig.stages.engine.device_lock import too_many_processes
from bootpig.stages.engine.estimates import Estimate, Workload
from bootpig.stages.engine.saved import Checkpoints
from bootpig.stages.train.chosen import selected_samples
from bootpig.stages.train.config import TrainConfig, micro_batch
from bootpig.stages.train.lora import lora_of, lora_problems, start_from, start_problem
from bootpig.stages.train.memory import training_memory
from bootpig.stages.train.start import check_fit, load_pipeline, model_info
from bootpig.stages.train.subjects import ValidationSubjects
from bootpig.stages.train.tracker_logins import tracker_problems
from bootpig.storage.fingerprint import digest

if TYPE_CHECKING:
    from accelerate import Accelerator


_LOG = logging.getLogger(__name__)

_STEP_TFLOP = 4.5
"""Of an update per sample of 512 px with SD 2.1's networks, in 10^12 operations."""


class Train(ReduceStage):
    """Reads encode's shards, and select's list of samples if there is one. Writes `model/`, `log.jsonl`, `samples/`
    and, by a tracker, `tensorboard/`.

    `model/` depends only on the input. The other files also contain speeds and times.
    """

    name = "train"
    version = 1
    upstream = ("encode", "select")
    config_class = TrainConfig
    config: TrainConfig
    identity_prefix: ClassVar[str] = "model/"
    log: ClassVar[str] = "log.jsonl"

    @property
    def subjects(self) -> ValidationSubjects | None:
        """The validation subjects, if they are drawn."""
        c = self.config
        return None if c.evaluate_every is None or c.evaluation is None else ValidationSubjects(c.evaluation)

    def device(self) -> str:
        # accelerate uses a GPU if there is one, and assigns one to each rank
        rank = os.environ.get("LOCAL_RANK")
        return "auto" if rank is None else f"cuda:{rank}"

    def processes(self) -> int:
        c = self.config
        if c.num_processes != "auto":
            return c.num_processes
        return self._divided(max(1, _accelerators()))

    def _divided(self, devices: int) -> int:
        """The largest number of devices among which a batch can be divided."""
        return next(count for count in range(devices, 0, -1) if self.config.global_batch_size % count == 0)

    def warnings(self) -> list[str]:
        devices, size = _accelerators(), self.config.global_batch_size
        if self.config.num_processes != "auto" or "RANK" in os.environ or devices < 2:
            return []
        if (used := self._divided(devices)) == devices:
            return []
        return [
            f"train.global_batch_size: {size} cannot be divided among the {devices} devices of this machine, so "
            f"num_processes: auto uses {used} of them; use a multiple of {devices}, such as "
            f"{max(1, round(size / devices)) * devices}"
        ]

    def models(self) -> dict[str, ModelSource]:
        c = self.config
        lookups: dict[str, Callable[[], ModelSource]] = {
            "model": lambda: resolve("train.model", c.model, c.revision, PIPELINE, BASE)
        }
        if c.init_from is not None:
            lookups["init_from"] = self._init_from
        if c.keep == "best":
            lookups |= self._judging()
        return resolve_all(self.name, lookups)

    def unhashed_models(self) -> dict[str, ModelSource]:
        # their scores are only for the log
        return {} if self.config.keep == "best" else resolve_all(self.name, self._judging())

    def _judging(self) -> dict[str, Callable[[], ModelSource]]:
        """How the judges and the validation subjects are found, if there are any."""
        if self.subjects is None:
            return {}
        return {f"evaluation.{name}": look_up for name, look_up in self.subjects.lookups().items()}

    def check_models(self) -> list[str]:
        sources = self.models()
        if problems := too_many_processes(self.name, self.config.num_processes, _accelerators()):
            return problems
        problems = pipeline_problems(sources["model"]) or base_problems(sources["model"])
        problems = problems or lora_problems(self.config, sources["model"])
        if self.config.optimizer != "adamw":
            from bootpig.stages.train.optimizers import missing_package

            problems += [problem for problem in [missing_package(self.config)] if problem]
        if "init_from" in sources:
            problems += trained_problems("train.init_from", Path(sources["init_from"].path), sources["model"])
        if self.subjects is not None:
            problems += self.subjects.problems(self._judges())
        return problems

    def _judges(self) -> dict[str, ModelSource]:
        """The judges by name."""
        found = resolve_all(self.name, self._judging())
        return {name: found[f"evaluation.{name}"] for name in ("clip", "dino")}

    def check_ready(self) -> None:
        if problems := tracker_problems(self.config.trackers):
            raise InputError("\n".join(problems))
        if self.subjects is not None:
            self.subjects.decodable_subjects()

    def estimate(self, work: Workload) -> Estimate:
        c = self.config
        again = 4 / 3 if c.gradient_checkpointing else 1.0
        memory, memory_line = training_memory(c, work.above.pixels)
        unet = sizes.unet_tflop(c.model, work.above.pixels)
        passes = c.steps * c.global_batch_size * unet
        weights = sizes.unet_parameters(c.model)
        base = {"none": 0.0, "rsa": sizes.RSA_SHARE, "all": 1.0}[c.trainable.base]
        trained = weights * (base + (1.0 if c.trainable.reference else 0.0))
        model = 4 * weights * (1 + max(base, sizes.RSA_SHARE))
        if (lora := lora_of(c)) is not None:
            trained = lora_parameters(c.model, lora, whole_base=c.trainable.base == "all")
            model = 4 * trained
        drawn = 0.0 if self.subjects is None else self.subjects.passes(c.steps, c.evaluate_every or c.steps)
        return Estimate(
            replace(work.above, base=c.model),
            tflop=work.samples * (passes * _STEP_TFLOP / sizes.UNET_TFLOP * again + drawn * unet),
            # checkpoints hold weights and two moments, in float32, and the best weights
            stored_bytes=work.samples * (model + CHECKPOINTS_KEPT * (16 if c.keep == "best" else 12) * trained),
            memory=memory,
            assumptions=(
                sizes.ASSUMPTION,
                memory_line,
                f"train: trained weights in float32 and {CHECKPOINTS_KEPT} checkpoints",
            ),
        )

    def _init_from(self) -> ModelSource:
        name = str(self.config.init_from)
        if local_path(name) is None:
            raise InputError(f"train.init_from: {name!r} is not a folder; give the folder of a trained model")
        source = resolve("train.init_from", name)
        info = model_info(Path(source.path))
        if info is not None and (problem := start_problem(self.config, info)):
            raise InputError(problem)
        reads = None if info is None else str(info.get("reference_timestep", "same"))
        wanted = self.config.reference_timestep
        if reads not in (None, wanted):
            raise InputError(
                f"train.reference_timestep: {wanted!r}, but train.init_from was trained with {reads!r}; set "
                f"reference_timestep to {reads}, or start from another model"
            )
        return source

    def run(self, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress) -> None:
        """Train until `steps`, starting from the newest checkpoint if there is one.

        Raises:
            InputError: there are too few samples, or the base model does not match them.
            ModelError: the base or `init_from` cannot be loaded.
            Interrupted: a signal arrived; a checkpoint was written.
            FatalError: the loss or a gradient is not finite.
        """
        import torch
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # accelerate keeps global state and refuses to change the precision, but a process may train more than once
        AcceleratorState._reset_state(True)
        accelerator = Accelerator(mixed_precision=self.config.mixed_precision, cpu=not torch.accelerator.is_available())
        ranks = accelerator.num_processes
        if self.config.global_batch_size % ranks:
            raise InputError(
                f"train.global_batch_size: {self.config.global_batch_size} cannot be divided among {ranks} processes; "
                "use a multiple of their number"
            )
        share = self.config.global_batch_size // ranks
        accelerator.gradient_accumulation_steps = share // micro_batch(share, self.config.per_device_batch_size)
        try:
            self._train(accelerator, data, workdir, checkpoints, progress)
        finally:
            accelerator.free_memory()
            AcceleratorState._reset_state(True)

    def _train(
        self, accelerator: Accelerator, data: ReduceInput, workdir: Path, checkpoints: Checkpoints, progress: Progress
    ) -> None:
        from bootpig.models.core.bootpig import BootPIG
        from bootpig.models.pipelines.bases import empty_prompt, training_schedule
        from bootpig.models.pipelines.card import licence_of
        from bootpig.stages.train.dataset import ShardLoader
        from bootpig.stages.train.evaluation import Evaluation
        from bootpig.stages.train.grid import SampleGrid
        from bootpig.stages.train.log import TrainingLog
        from bootpig.stages.train.loop import Trainer
        from bootpig.stages.train.meter import Meter
        from bootpig.stages.train.objective import Draws, Objective
        from bootpig.stages.train.precision import FrozenInBfloat16
        from bootpig.stages.train.sharding import gather
        from bootpig.stages.train.state import check_finite
        from bootpig.stages.train.trackers import Trackers
        from bootpig.stages.train.validation import MEASURED, Validation

        config = self.config
        chosen = selected_samples(data)
        loader = ShardLoader(
            data,
            seed=config.seed,
            batch_size=config.global_batch_size,
            window=config.shuffle_window,
            cache_bytes=config.cache_bytes,
            workers=config.num_workers,
            rank=accelerator.process_index,
            ranks=accelerator.num_processes,
            held_out=config.validation,
            references=config.references_per_sample,
            chosen=chosen,
        )
        samples = loader.first(SampleGrid.ROWS)
        sources = self.models()
        lora = lora_of(config)
        if problems := lora_problems(config, sources["model"]):
            raise InputError(problems[0])
        pipeline: Any = load_pipeline(sources, lora)
        for sample in loader.one_of_each_size():
            check_fit(config.model, pipeline, sample)
        # the pipeline shares its UNets with the model in training, so it always samples with and saves current weights
        reads = data.config.get("reference_caption", "caption")  # encode's setting, which inference must follow
        pipeline.register_to_config(
            key_scale=config.key_scale, reference_caption=reads, reference_timestep=config.reference_timestep
        )
        empty, empty_pooled = empty_prompt(pipeline)
        model = BootPIG(
            pipeline.unet,
            pipeline.reference_unet,
            train_reference=config.trainable.reference,
            train_base=config.trainable.base,
            key_scale=config.key_scale,
            lora=lora,
            seed=config.seed,
        )
        if lora and "init_from" in sources:
            with loading("train.init_from", sources["init_from"].source):
                start_from(model, Path(sources["init_from"].path))
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
        sharded = config.shard == "fsdp" and accelerator.num_processes > 1
        if config.shard == "fsdp" and not sharded:
            _LOG.warning("train.shard: fsdp has no effect with one process")
        lowers = config.mixed_precision == "bf16" and not sharded  # FSDP wants one dtype
        lowered = FrozenInBfloat16(model.unet, model.reference_unet) if lowers else None
        scheduler = training_schedule(pipeline.scheduler)
        objective = Objective(model, scheduler, pipeline.vae_scale_factor, config.min_snr_gamma)
        *_, height, width = samples[0].tensors["target"].shape
        pixels = height * width * pipeline.vae_scale_factor**2
        meter = Meter(config, pixels, accelerator.device, accelerator.num_processes)
        trainer = Trainer(config, model, objective, loader, accelerator, meter)
        draws = Draws(
            seed=config.seed,
            timesteps=scheduler.config.num_train_timesteps,
            empty_prompt=empty,
            empty_pooled=empty_pooled,
            drop_caption=config.drop_caption,
            drop_reference=config.drop_reference,
            drop_reference_per=config.drop_reference_per,
            clean_references=config.reference_timestep == "zero",
            distribution=config.timestep_distribution,
        )
        facts = {
            "recipe": config.hashed(),
            "version": self.version,
            "models": {name: source.as_json() for name, source in sources.items()},
            "dataset": digest([[unit.unit, unit.digest] for unit in data.units]),
            "samples": loader.order.samples,
        }
        if chosen is not None:
            facts["selected"] = digest(sorted(chosen))
        validation = None
        watches = accelerator.is_main_process or sharded
        if loader.held and watches:
            validation = Validation(
                objective,
                loader.held_samples(MEASURED),
                timesteps=scheduler.config.num_train_timesteps,
                seed=config.seed,
                clean=config.reference_timestep == "zero",
            )
        grid = SampleGrid(pipeline, samples, config.seed) if config.sample_every and watches else None
        evaluation = None
        if config.evaluate_every is not None:
            evaluation = Evaluation(
                config,
                self._judges(),
                sources["model"],
                pipeline,
                accelerator,
                weights=model.trained_state,
                averaged=trainer.averaged,
            )
        log = None
        if accelerator.is_main_process:
            settings = {"train": config.model_dump(mode="json"), "encode": data.config, **facts}
            del settings["recipe"]  # a part of train
            log = TrainingLog(workdir, Trackers(config.trackers, workdir, data.run, settings))
        try:
            trainer.fit(draws, digest(facts), log, checkpoints, progress, grid, validation, evaluation)
        finally:
            if log:
                log.close()
        best = evaluation.best if evaluation else None
        kept = best.facts() if best else {}
        if best and kept:
            model.load_trained_state(best.weights)
        elif watches:
            trainer.use_average()
        if sharded:
            gather(model)
        if accelerator.is_main_process:
            check_finite(model.trained_state(), config.steps)
            if lowered:
                model.cpu()  # its weights have their full size again
                lowered.restore()
            base = sources["model"]
            info = {
                "base": config.model,
                "revision": base.revision,
                "base_license": licence_of(base.path, base.revision),
                **facts,
                **({"kept": kept} if kept else {}),
            }
            # the other ranks do not wait for it: a collective has a timeout
            pipeline.save_bootpig(workdir / "model", info, train_base=config.trainable.base, lora=lora)


def _accelerators() -> int:
    """Number of GPUs or other accelerators of this machine. 0: there is only the CPU."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0
