"""The training loop: updates, learning rate schedule, log, checkpoints, exact resume, and shutdown on a signal."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import get_total_norm

from bootpig.models.core.bootpig import BootPIG
from bootpig.models.memory import free_memory, is_out_of_memory
from bootpig.stages.engine.contract import FatalError, InputError, Interrupted, Progress
from bootpig.stages.engine.saved import Checkpoints
from bootpig.stages.engine.slices import TOO_LARGE
from bootpig.stages.train.best import Best
from bootpig.stages.train.config import TrainConfig, micro_batch
from bootpig.stages.train.dataset import Batch, ShardLoader
from bootpig.stages.train.evaluation import Evaluation
from bootpig.stages.train.log import TrainingLog
from bootpig.stages.train.meter import Meter
from bootpig.stages.train.objective import Draws, Inputs, Objective
from bootpig.stages.train.optimizers import make_optimizer
from bootpig.stages.train.sharding import fill_gradients, shard, whole
from bootpig.stages.train.signals import Signals
from bootpig.stages.train.state import Position, collect_state, load_state, save_state
from bootpig.stages.train.uploads import Uploads
from bootpig.stages.train.validation import Reading, Validation, usual_interval

_LOG = logging.getLogger(__name__)


PATIENCE_SECONDS = 60.0
"""Time that rank 0 lets the others wait for the upload of an earlier checkpoint."""


def rate_factor(step: int, config: TrainConfig) -> float:
    """The factor on the learning rates in update `step`, counted from 0."""
    factor = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    begin = config.tail_from * config.steps
    if config.schedule == "linear_tail" and step >= begin:
        factor *= 1.0 - (1.0 - config.tail_to) * (step - begin) / max(1.0, config.steps - 1 - begin)
    return factor


class Trainer:
    """Trains one BootPIG model on one data set. Each rank of a distributed run creates one."""

    def __init__(
        self,
        config: TrainConfig,
        model: BootPIG,
        objective: Objective,
        loader: ShardLoader,
        accelerator: Accelerator,
        meter: Meter,
    ) -> None:
        self.config = config
        self.model = model
        self.loader = loader
        self.accelerator = accelerator
        self.meter = meter
        # Loader and schedule are not prepared: accelerate would split the already split stream again, and would
        # advance the schedule once per process.
        self.sharded = config.shard == "fsdp" and accelerator.num_processes > 1
        if self.sharded:
            self.objective = accelerator.prepare_model(objective, evaluation_mode=True)  # its device and autocast only
            shard(self.objective, model)
        else:
            self.objective = accelerator.prepare(objective)
        groups = model.parameter_groups(config.learning_rate_reference, config.learning_rate_base)
        optimizer = make_optimizer(config, groups)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = accelerator.prepare(optimizer)
        self.base_rates = [group["lr"] for group in groups]
        self._warned = False
        self._gain = ""
        self._best: Best | None = None
        self._norms: dict[str, torch.Tensor] = {}
        self.average: EMAModel | None = None
        if config.ema_decay is not None:
            self.average = EMAModel(self._trained(), decay=config.ema_decay)

    def fit(
        self,
        draws: Draws,
        identity: str,
        log: TrainingLog | None,
        checkpoints: Checkpoints,
        progress: Progress,
        picture: Callable[[], Image.Image] | None,
        validation: Validation | None = None,
        evaluation: Evaluation | None = None,
    ) -> None:
        """Run all remaining updates.

        Args:
            draws: draws noise, timesteps and dropout for a batch.
            identity: digest of everything that determines the result; checkpoints with another one are refused.
            log: the training log; None except in the main process.
            checkpoints: where checkpoints are read and written.
            progress: progress callback.
            picture: makes a grid of samples with the current weights.
            validation: measures the loss on held-out samples.
                Both are None except in the main process and, since they call the networks, in all ranks of a sharded
                model.
            evaluation: draws and judges validation subjects; in all ranks.

        Raises:
            Interrupted: a signal arrived; a checkpoint was written.
            FatalError: the loss or a gradient is not finite. No checkpoint is written from then on.
            InputError: the checkpoint cannot be used.
        """
        self._best = evaluation.best if evaluation else None
        position = self._resume(checkpoints, identity, log)
        losses = torch.tensor(position.loss_sum, device=self.accelerator.device)
        losses_since = position.loss_steps
        self.meter.restart(position.step)
        progress(position.step, self.config.steps, f"resumed at step {position.step}" if position.step else "")

        def prepare(step: int, batch: Batch) -> Inputs:
            inputs = draws(step, batch)
            return inputs.pinned() if self.accelerator.device.type == "cuda" else inputs

        with Signals() as signals, _attention(self.accelerator.device), Uploads(checkpoints) as uploads:
            if evaluation and position.step == 0:
                self.meter.pause(evaluation(0, log, progress))
            for step, inputs in enumerate(
                self.loader.batches(position.step, self.config.steps, prepare), start=position.step
            ):
                losses += self._update(step, inputs)
                losses_since += 1
                done = step + 1
                last = done == self.config.steps
                reading = self._validate(validation, done) if validation else None
                if self._is_logged(done):
                    self._log(log, progress, done, self._finite(losses, done) / losses_since, reading)
                    losses.zero_()
                    losses_since = 0
                elif log and reading:
                    log.line({"step": done, **reading.values()})
                if evaluation:
                    self.meter.pause(evaluation(done, log, progress))
                if picture and self.config.sample_every and (done % self.config.sample_every == 0 or last):
                    self._picture(log, done, picture)
                stop = self._stop(signals, done)
                if stop or (done % self.config.checkpoint_every == 0 and not last):
                    position = Position(done, self._finite(losses, done), losses_since)
                    self._save(uploads, identity, log, position, wait=bool(stop))
                if stop:
                    uploads.wait()
                    raise Interrupted(128 + stop)

    def _trained(self) -> list[torch.nn.Parameter]:
        """The trained parameters, in the order of `BootPIG.trained_state`."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def use_average(self) -> None:
        """Replace the trained weights by their moving average, if there is one."""
        if self.average is not None:
            self.average.copy_to(self._trained())

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the trained weights are their moving average, if there is one."""
        if self.average is None:
            yield
            return
        self.average.store(self._trained())
        self.average.copy_to(self._trained())
        try:
            yield
        finally:
            self.average.restore(self._trained())

    def _picture(self, log: TrainingLog | None, done: int, picture: Callable[[], Image.Image]) -> None:
        """Add sample pictures to the log. A failure is only a warning and does not stop training."""
        try:
            # frozen weights may be stored in the dtype that autocast gives them
            with self.accelerator.autocast() if self.config.mixed_precision == "bf16" else contextlib.nullcontext():
                drawn = picture()
            if log:
                log.picture(done, drawn)
            return
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            _LOG.warning("train: no sample pictures at step %d (%s: %s)", done, type(error).__name__, reason)
        free_memory()  # not in the block above, where the traceback still holds what was drawn so far

    def _validate(self, validation: Validation, done: int) -> Reading | None:
        """The losses on held-out samples, if they are due after `done` updates. Warns if the reference is not used."""
        steps = self.config.steps
        every = self.config.validate_every or usual_interval(self.config.global_batch_size)
        if done % every and done != steps:
            return None
        share = self.config.global_batch_size // self.accelerator.num_processes
        size = share // self.accelerator.gradient_accumulation_steps
        with self.accelerator.autocast() if self.config.mixed_precision == "bf16" else contextlib.nullcontext():
            reading = validation(size, self.accelerator.device)
        if done * 5 >= steps and reading.low <= 0 and not self._warned:
            self._warned = True
            _LOG.warning(
                "train: after %d of %d updates the reference lowers the held-out loss by %.2g (95 %% interval %.2g to "
                "%.2g), so it is not used yet; if that stays, raise train.learning_rate_reference or train longer",
                done,
                steps,
                reading.gain,
                reading.low,
                reading.high,
            )
        return reading

    def _update(self, step: int, inputs: Inputs) -> torch.Tensor:
        """Update the weights once. Returns the mean loss of this rank's samples, on the device."""
        factor = rate_factor(step, self.config)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        while (loss := self._gradients(step, inputs)) is None:
            self._halve(len(inputs.use_reference))
        if self.sharded:
            fill_gradients(self.parameters)
        if self._is_logged(step + 1):
            self._norms = {
                group["name"]: get_total_norm([p.grad for p in group["params"] if p.grad is not None])
                for group in self.optimizer.param_groups
            }
        self.accelerator.clip_grad_norm_(self.parameters, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.step(self._trained())
        return loss

    def _gradients(self, step: int, inputs: Inputs) -> torch.Tensor | None:
        """Accumulate the gradients of a step over its parts. Returns the mean loss, or None if memory ran out."""
        # a base model with dropout draws from the global generator
        torch.manual_seed(self.config.seed + step)
        self.accelerator.step = 0  # parts done in this step; a failed attempt may have left another count
        count = self.accelerator.gradient_accumulation_steps
        loss = torch.zeros((), device=self.accelerator.device)
        try:
            for part in inputs.parts(len(inputs.use_reference) // count):
                with self.accelerator.accumulate(self.objective):
                    value = self.objective(**part.on(self.accelerator.device))
                    self.accelerator.backward(value)
                loss += value.detach() / count
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self.accelerator.num_processes > 1:  # the other ranks already wait in an all-reduce
                raise FatalError(
                    f"train: out of memory on rank {self.accelerator.process_index}; lower "
                    "train.per_device_batch_size, which does not change the result, and run again"
                ) from error
            return None
        return loss

    def _halve(self, share: int) -> None:
        """Split the batch into more, smaller parts. The global batch size stays the same."""
        size = share // self.accelerator.gradient_accumulation_steps
        if size == 1:
            raise FatalError(f"train: {TOO_LARGE}, or set train.gradient_checkpointing")
        size = micro_batch(share, size // 2)
        self.accelerator.gradient_accumulation_steps = share // size
        self.optimizer.optimizer.zero_grad()
        free_memory()
        _LOG.warning("train: out of memory; continuing with train.per_device_batch_size %d", size)

    def _is_logged(self, done: int) -> bool:
        """Whether there is a log line after `done` updates."""
        return done % self.config.log_every == 0 or done == self.config.steps

    def _finite(self, losses: torch.Tensor, done: int) -> float:
        """The mean of a sum of losses over all ranks. Synchronises with the device. Raises FatalError if it is not
        finite."""
        loss = float(self.accelerator.reduce(losses.clone(), "mean").item())
        if not math.isfinite(loss):
            raise FatalError(f"train: the loss is {loss} near step {done}; lower the learning rates and run again")
        return loss

    def _log(
        self,
        log: TrainingLog | None,
        progress: Progress,
        done: int,
        loss: float,
        reading: Reading | None,
    ) -> None:
        norms = {name: float(whole(norm)) for name, norm in self._norms.items()}
        for name, norm in norms.items():
            if not math.isfinite(norm):
                raise FatalError(
                    f"train: the gradient norm of the {name} network is {norm} at step {done}; lower the learning "
                    "rates and run again"
                )
        speed = self.meter.read(done)
        if log:
            values = {"step": done, "epoch": round(self.loader.epochs(done), 4), "loss": loss}
            share = self.config.global_batch_size // self.accelerator.num_processes
            values["per_device_batch_size"] = share // self.accelerator.gradient_accumulation_steps
            rates = {f"learning_rate_{group['name']}": group["lr"] for group in self.optimizer.param_groups}
            measured = {} if reading is None else reading.values()
            # an update that drops the reference has no gradients for its network
            drawn = {f"grad_norm_{name}": norm for name, norm in norms.items() if norm}
            log.line({**values, **measured, **drawn, **rates, **speed})
        if reading is not None:
            self._gain = f"reference gain {reading.gain:.4f} ± {reading.high - reading.gain:.4f}, "
        gradients = f"grad norm {' / '.join(f'{norm:.3g}' for norm in norms.values())}"
        rate = f"{speed['samples_per_second']:.1f} samples/s"
        used = f", MFU {speed['mfu']:.0%}" if "mfu" in speed else ""
        progress(done, self.config.steps, f"loss {loss:.4f}, {self._gain}{gradients}, {rate}{used}")

    def _stop(self, signals: Signals, done: int) -> int | None:
        """The signal to stop for, the same on all ranks. They exchange it only at log steps, where they wait anyway."""
        if self.accelerator.num_processes == 1:
            return signals.received
        if done % self.config.log_every:
            return None
        noted = torch.tensor([signals.received or 0], device=self.accelerator.device)
        return int(self.accelerator.gather(noted).max().item()) or None

    def _save(
        self, uploads: Uploads, identity: str, log: TrainingLog | None, position: Position, *, wait: bool
    ) -> None:
        if not self.accelerator.is_main_process and not self.sharded:
            return
        if self.accelerator.num_processes > 1 and not self.sharded and not wait and uploads.busy(PATIENCE_SECONDS):
            # the other ranks would wait in the next all-reduce, which has a timeout
            _LOG.warning("train: no checkpoint at step %d, an earlier one is still being uploaded", position.step)
            return
        state = collect_state(self.model, self.optimizer.optimizer, self.average)
        if not self.accelerator.is_main_process:
            return

        def write(folder: Path) -> None:
            save_state(folder, state, position, identity)
            if log:
                log.save(folder)
            if self._best:
                self._best.save(folder)

        uploads.save(position.step, write)

    def _resume(self, checkpoints: Checkpoints, identity: str, log: TrainingLog | None) -> Position:
        found = checkpoints.latest()
        seen = {(identity, 0 if found is None else found[0])}
        if self.accelerator.num_processes > 1:
            seen = set(gather_object(list(seen)))
        if len(seen) > 1:
            raise InputError(
                "root: the training processes do not see the same data and checkpoints; use a root that all machines "
                "share, such as an s3:// URL, and make sure that no other run writes to it"
            )
        if found is None:
            return Position(0, 0.0, 0)
        step, folder = found
        position = load_state(folder, self.model, self.optimizer.optimizer, identity, self.average)
        if position.step != step:
            raise InputError(f"train: checkpoint {folder.name} claims to be from step {position.step}; remove it")
        if log:
            log.restore(folder)
        if self._best:
            self._best.load(folder)
        return position


@contextlib.contextmanager
def _attention(device: torch.device) -> Iterator[None]:
    """Use plain attention on a CPU: at the sizes trained there it is 15 to 45 % faster than the fused kernel."""
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext():
        yield
