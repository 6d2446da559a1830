"""A small wrapper over DeepSpeed: the task in, one optimizer step at a time out, the trained state whole at any
stage.

AdamW is torch's, over the trainable parameters only; the learning rate is set here before each step. In bf16 and
fp16 DeepSpeed casts the module's parameters (buffers keep their dtype) and Adam updates fp32 masters. Importing
this file does not import DeepSpeed: that takes seconds, and `aurora-ds --help` should not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aurora_ds.config import TrainConfig
from aurora_ds.errors import AuroraError
from aurora_ds.runtime import nvme, process_group
from aurora_ds.runtime.deepspeed_library import import_deepspeed, without_hooks
from aurora_ds.runtime.expert_ranks import ExpertRanks, is_expert, spread
from aurora_ds.runtime.groups import Group, groups_of
from aurora_ds.runtime.partitions import MOMENTS, Partitions
from aurora_ds.runtime.schedule import learning_rate
from aurora_ds.runtime.settings import resolve_settings
from aurora_ds.runtime.timing import StepTimes

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Bucket sizes in elements. DeepSpeed's default of 5e8 reserves 2 GB for gradients that take about 1 MB here.
_LARGEST_BUCKET = 48 * 1024 * 1024


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. `step` counts from 1; `grad_norm` is over all ranks, before clipping.

    `lr`: train.lr's, and `rates` those of all groups of parameters. `skipped`: the gradients were not finite, so
    nothing was updated (in fp16 that is how the loss scale is found).
    """

    step: int
    lr: float
    rates: tuple[float, ...]
    grad_norm: float
    skipped: bool
    update_ratio: float | None = None


class Engine:
    """A task under DeepSpeed. Made by `build`; every method is called by all ranks together."""

    def __init__(
        self,
        deepspeed_engine: Any,
        task: nn.Module,
        config: TrainConfig,
        total_steps: int,
        steps_per_epoch: int,
        shapes: dict[str, torch.Size],
        groups: list[Group],
        experts: ExpertRanks | None = None,
    ) -> None:
        """`shapes`: of all trainables by name, and `groups` of them, also of experts that other ranks hold."""
        self.deepspeed = deepspeed_engine
        self.task = task
        self.config = config
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.device = process_group.device()
        self.dtype = _DTYPES[config.precision]
        self.trainables = {name: value for name, value in task.named_parameters() if value.requires_grad}
        self.shapes, self.groups, self.experts = shapes, groups, experts
        self.partitions = Partitions(deepspeed_engine, self.trainables)
        self.times = StepTimes(self.device)
        self.step = 0
        self._micro_step = 0

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage in use."""
        return int(self.deepspeed.zero_optimization_stage())

    def place(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its tensors on this rank's device, floating ones in the model's dtype."""
        placed = {}
        for key, value in batch.items():
            if isinstance(value, Tensor):
                dtype = self.dtype if value.is_floating_point() else value.dtype
                value = value.to(self.device, dtype, non_blocking=True)
            placed[key] = value
        return placed

    def forward(self, batch: dict[str, Any], what: str = "loss", **keywords: Any) -> Any:
        """`task.forward(batch, what=what, …)` through DeepSpeed's hooks; the only way to run the task at stage
        3.
        """
        return self.deepspeed(self.place(batch), what=what, **keywords)

    def train(self) -> None:
        """Dropout on."""
        self.deepspeed.train()

    def eval(self) -> None:
        """Dropout off."""
        self.deepspeed.eval()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, forwards need no other rank: at stage 3 each may make as many as it likes. Enter and leave together,
        between optimizer steps; nothing may be trained inside. At other stages this does nothing.

        Every parameter is gathered once, so for that time each rank holds the whole model as at stage 0 (BLIP ViT-B for
        answering in fp32: 1.4 GB), and up to twice that while it gathers. DeepSpeed's module hooks, which would cut
        parameters up again and record the order of modules to prefetch by, are taken out and put back as they were:
        training goes on with the record that it had, and that is the same on all ranks. Experts that are spread over
        ranks are gathered likewise.
        """
        if self.experts is not None:
            with self.experts.whole():
                yield
            return
        if self.zero_stage != 3:
            yield
            return
        deepspeed = import_deepspeed()
        available = deepspeed.runtime.zero.partition_parameters.ZeroParamStatus.AVAILABLE
        # small parameters are always whole; gathered with the others they would be cut up afterwards
        cut = [parameter for parameter in self.task.parameters() if parameter.ds_status != available]
        with (
            deepspeed.zero.GatheredParameters(cut),
            without_hooks(self.deepspeed.optimizer.parameter_offload),
        ):
            yield

    @property
    def at_boundary(self) -> bool:
        """Whether the next `backward_and_step` ends an optimizer step."""
        return self._micro_step + 1 == self.config.accumulation

    def backward_and_step(self, loss: Tensor, measure_update: bool = False) -> StepReport | None:
        """Backward of one micro-batch; with the last one of an accumulation, clip and update.

        `loss` is the mean over this rank's micro-batch; gradients are averaged over micro-batches and ranks.
        Returns None between boundaries. `measure_update` adds ||new - old|| / ||old|| over the trainables.
        """
        with self.times.part("backward"):
            self.deepspeed.backward(loss)
        with self.times.part("optimizer"):
            if self.at_boundary:
                return self._update(measure_update)
            self.deepspeed.step()
            self._micro_step += 1
            return None

    def _update(self, measure_update: bool) -> StepReport:
        self._micro_step = 0
        schedule = self.config, self.total_steps, self.steps_per_epoch
        rates = tuple(learning_rate(self.step, *schedule, group.lr) for group in self.groups)
        for group, rate in zip(self.deepspeed.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        plain_norm = self._plain_grad_norm() if self.partitions.form == "plain" else None
        broken = plain_norm is not None and not self._clip_plain(plain_norm)
        before = (
            [master.detach().clone() for master in self.partitions.local_values()] if measure_update else None
        )
        self.deepspeed.step()
        self.step += 1
        return StepReport(
            step=self.step,
            lr=learning_rate(self.step - 1, *schedule),
            rates=rates,
            grad_norm=plain_norm if plain_norm is not None else self._wrapped_grad_norm(),
            skipped=broken or not self.deepspeed.was_step_applied(),
            update_ratio=None if before is None else self._update_ratio(before),
        )

    def trainable_values(self) -> dict[str, Tensor]:
        """Every trainable by name, whole, fp32, on the CPU of every rank. Collective."""
        return self._of_all(
            {name: self.partitions.read(parameter) for name, parameter in self.trainables.items()}
        )

    def load_trainable_values(self, values: dict[str, Tensor]) -> None:
        """Set masters and module from whole tensors; the very next forward uses them. Collective.

        Raises AuroraError when names or shapes differ from the trainables of the task.
        """
        self._check_names(values, "trained values")
        with torch.no_grad():
            values = {name: values[name].detach().to(torch.float32) for name in self.trainables}
            self.partitions.write_model(values)
            for name, parameter in self.trainables.items():
                self.partitions.write(parameter, values[name])

    def optimizer_state(self) -> dict[str, Tensor]:
        """`NAME.master`, `NAME.exp_avg`, `NAME.exp_avg_sq` per trainable (fp32, whole), `step`, `adam_step`.
        Collective.

        The same tensors at every ZeRO stage and number of ranks; in fp16 also `loss_scaler.FIELD`.
        """
        has_moments = self.partitions.has_moments()
        state = {}
        for name, parameter in self.trainables.items():
            state[f"{name}.master"] = self.partitions.read(parameter)
            for moment in MOMENTS:
                if has_moments:
                    state[f"{name}.{moment}"] = self.partitions.read(parameter, moment)
                else:
                    state[f"{name}.{moment}"] = torch.zeros_like(state[f"{name}.master"])
        state = self._of_all(state)
        state["step"] = torch.tensor(self.step, dtype=torch.int64)
        state["adam_step"] = torch.tensor(self.partitions.adam_step(), dtype=torch.int64)
        for field, value in self.partitions.loss_scaler_fields().items():
            state[f"loss_scaler.{field}"] = torch.tensor(value, dtype=torch.float64)
        return state

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of `optimizer_state`: masters, module, moments, step count. Collective."""
        self.load_trainable_values(_part(state, "master"))
        moments = {moment: _part(state, moment) for moment in MOMENTS}
        for moment, values in moments.items():
            self._check_names(values, moment)
        with torch.no_grad():
            adam_step = int(state["adam_step"])
            if adam_step > 0:
                self.partitions.make_moments(adam_step)
                for name, parameter in self.trainables.items():
                    for moment, values in moments.items():
                        self.partitions.write(parameter, values[name].to(torch.float32), moment)
        prefix = "loss_scaler."
        scaler = {key[len(prefix) :]: float(value) for key, value in state.items() if key.startswith(prefix)}
        self.partitions.set_loss_scaler_fields(scaler)
        self.step = int(state["step"])
        self._micro_step = 0

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers. The task's values stay as they are at stages 0 to 2."""
        self.deepspeed.destroy()

    def _of_all(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """What belongs to trainables of this rank, and to the experts of others. Collective."""
        return values if self.experts is None else self.experts.gathered(values)

    def _check_names(self, values: dict[str, Tensor], what: str) -> None:
        missing = sorted(set(self.shapes) - set(values))
        unexpected = sorted(set(values) - set(self.shapes))
        if missing or unexpected:
            raise AuroraError(
                f"The {what} to load do not fit this task: missing {missing or 'none'}, unexpected "
                f"{unexpected or 'none'}. They were saved by a run that trained other parameters; use its recipe "
                "(method, prompts.* and trained heads), or start in another output folder."
            )
        for name, shape in self.shapes.items():
            if values[name].shape != shape:
                raise AuroraError(
                    f"The {what} to load have shape {tuple(values[name].shape)} for {name}, this task has "
                    f"{tuple(shape)}. "
                    "Use the recipe that they were trained with (prompts.rank and the backbone's sizes decide "
                    "shapes)."
                )

    def _plain_grad_norm(self) -> float:
        grads = [parameter.grad for parameter in self.trainables.values() if parameter.grad is not None]
        if not grads:
            return 0.0
        norms = torch.stack([grad.float().norm() for grad in grads])
        if self.experts is not None:
            held = [each for each in self.trainables.values() if each.grad is not None]
            spread_out = torch.tensor([is_expert(each) for each in held], device=norms.device)
            every = self.experts.sum_over_ranks(norms[spread_out].square().sum()).sqrt()
            norms = torch.cat([norms[~spread_out], every[None]])
        return float(torch.linalg.vector_norm(norms))

    def _clip_plain(self, norm: float) -> bool:
        """Clip as the ZeRO optimizers do, and like them drop gradients that are not finite: False then."""
        if not math.isfinite(norm):
            for parameter in self.trainables.values():
                parameter.grad = None
            return False
        factor = self.config.clip_norm / (norm + 1e-6)
        if 0.0 < factor < 1.0:
            for parameter in self.trainables.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        return True

    def _wrapped_grad_norm(self) -> float:
        norm = self.deepspeed.get_global_grad_norm()
        return math.nan if norm is None else float(norm)

    def _update_ratio(self, before: list[Tensor]) -> float:
        # changes and values, squared; in the second row of experts, of which this rank has a share
        sums = torch.zeros(2, 2, dtype=torch.float64, device=self.device)
        for old, new in zip(before, self.partitions.local_values(), strict=True):
            row = sums[1 if self.experts is not None and is_expert(new) else 0]
            row[0] += (new.detach() - old).double().square().sum().to(self.device)
            row[1] += old.double().square().sum().to(self.device)
        if self.partitions.is_partitioned and process_group.world_size() > 1:
            torch.distributed.all_reduce(sums)
        elif self.experts is not None:
            self.experts.sum_over_ranks(sums[1])
        changed, values = sums.sum(0)
        return float((changed / values.clamp_min(1e-30)).sqrt())


def build(
    task: nn.Module,
    config: TrainConfig,
    deepspeed_config: str | Path | dict | None,
    total_steps: int,
    steps_per_epoch: int,
) -> Engine:
    """Put `task` under DeepSpeed. The process group must be started; the task's values must be in place already.

    `deepspeed_config` is a JSON file or dict; None means `config.zero_stage` with nothing else. The batch size,
    accumulation, clipping and precision come from `config`: a file that says otherwise is an AuroraError.
    """
    settings = resolve_settings(config, deepspeed_config, process_group.world_size())
    shapes = {name: value.shape for name, value in task.named_parameters() if value.requires_grad}
    if not shapes:
        raise AuroraError(
            "Nothing is trainable in this task: choose train.method aurora, heads or full, or other sites."
        )
    scalars = [name for name, shape in shapes.items() if not shape]
    if scalars:
        raise AuroraError(
            f"{', '.join(scalars)} cannot be trained: DeepSpeed takes no parameter without dimensions. Give it "
            "shape (1,)."
        )
    zero = settings["zero_optimization"]
    zero.setdefault("stage", config.zero_stage)
    exact = {}
    if config.precision != "fp32":
        # Casting happens inside initialize; the masters must start from the values before the cast.
        exact = {name: value.detach().clone() for name, value in task.named_parameters() if name in shapes}
    if zero["stage"] == 0 and config.precision == "fp32":
        # There the engine clips: it has the norm at hand, which DeepSpeed would compute again and not report.
        settings["gradient_clipping"] = 0.0

    # Set by every launcher; DeepSpeed insists on it in a process that has none too.
    os.environ.setdefault("LOCAL_RANK", "0")
    deepspeed = import_deepspeed()
    experts = spread(task, config, settings)
    named = {name: value for name, value in task.named_parameters() if name in shapes}
    trainables = list(named.values())
    bucket = bucket_elements(sum(parameter.numel() for parameter in trainables))
    for key in ("reduce_bucket_size", "allgather_bucket_size"):
        zero.setdefault(key, bucket)
    if config.precision == "fp16" and not deepspeed.accelerator.get_accelerator().is_fp16_supported():
        raise AuroraError(
            f"train.precision fp16 does not work on this device ({process_group.device().type}). Use bf16 or fp32, "
            "or a GPU."
        )
    nvme.check_weights(config.precision, zero, deepspeed.accelerator.get_accelerator().is_fp16_supported())
    task.to(process_group.device())
    groups = groups_of(shapes, config, () if experts is None else experts.among(shapes))
    own = [
        {
            "params": nvme.in_order(
                [named[name] for name in group.names if name in named], zero, process_group.world_size()
            ),
            "lr": group.lr,
            "weight_decay": group.weight_decay,
            **({"moe": True, "name": experts.name} if group.spread else {}),
        }
        for group in groups
    ]
    optimizer = torch.optim.AdamW(own, betas=config.betas, eps=config.eps)
    # DeepSpeed broadcasts parameters as bytes; a tensor without dimensions (a frozen temperature) has no byte view.
    scalars = [parameter for parameter in task.parameters() if parameter.dim() == 0]
    for parameter in scalars:
        parameter.data = parameter.data.reshape(1)
    with nullcontext() if experts is None else experts.known(task):
        deepspeed_engine, *_ = deepspeed.initialize(
            model=task, optimizer=optimizer, model_parameters=trainables, config=settings
        )
    process_group.limit_all(config.collective_timeout_seconds)
    for parameter in scalars:
        if hasattr(parameter, "ds_shape"):
            parameter.ds_shape = torch.Size([])
        if parameter.numel() == 1:
            parameter.data = parameter.data.reshape(())
    engine = Engine(deepspeed_engine, task, config, total_steps, steps_per_epoch, shapes, groups, experts)
    if config.precision != "fp32":
        # The stage-0 wrapper takes an empty Adam step when it is made, which decays the weights and counts as one.
        engine.partitions.adam.state.clear()
        # Rank 0's values are the run's values, as DeepSpeed broadcasts them for the module.
        engine.load_trainable_values(process_group.broadcast_tensors(exact))
    return engine


def bucket_elements(elements: int) -> int:
    """Elements of a communication bucket that holds `elements`: a multiple of 1024, since DeepSpeed wants even
    ones.
    """
    return min(-(-elements // 1024) * 1024, _LARGEST_BUCKET)


def _part(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    ending = f".{kind}"
    return {key[: -len(ending)]: value for key, value in state.items() if key.endswith(ending)}
