"""The fp32 values and Adam moments of every trainable, whole, whatever ZeRO stage holds them in pieces.

DeepSpeed keeps them in four forms: the parameters themselves (stage 0, fp32), an fp32 twin per parameter (stage 0,
bf16), flat vectors cut over the ranks (stages 1 and 2), and per-parameter slices (stage 3). Reading and
writing here is collective: every rank calls it for the same parameters in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
_LOSS_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Partitions:
    """Access to one DeepSpeed engine's optimizer, for its trainable parameters."""

    def __init__(self, deepspeed_engine: Any, trainables: dict[str, nn.Parameter]) -> None:
        self.engine = deepspeed_engine
        self.trainables = trainables
        wrapper = deepspeed_engine.optimizer
        if hasattr(wrapper, "fp32_partitioned_groups_flat"):
            self.form = "slices"
        elif hasattr(wrapper, "single_partition_of_fp32_groups") or hasattr(
            wrapper, "fp32_groups_flat_partition"
        ):
            self.form = "flat"
        elif hasattr(wrapper, "fp32_groups"):
            self.form = "twins"
        else:
            self.form = "plain"
        self.adam = wrapper if self.form == "plain" else wrapper.optimizer
        self._twins = {}
        self._linked = False
        if self.form == "twins":
            for low_group, full_group in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
                self._twins.update({id(low): full for low, full in zip(low_group, full_group, strict=True)})

    @property
    def is_partitioned(self) -> bool:
        """Whether `local_masters` of all ranks together make one copy (else each rank has all of it)."""
        return self.form in ("flat", "slices")

    def local_masters(self) -> list[Tensor]:
        """The fp32 tensors that this rank's Adam updates."""
        wrapper = self.engine.optimizer
        if self.form == "plain":
            return list(self.trainables.values())
        if self.form == "twins":
            return [tensor for group in wrapper.fp32_groups for tensor in group]
        if self.form == "slices":
            return list(wrapper.fp32_partitioned_groups_flat)
        if hasattr(wrapper, "single_partition_of_fp32_groups"):
            return list(wrapper.single_partition_of_fp32_groups)
        return list(wrapper.fp32_groups_flat_partition)

    def local_values(self) -> list[Tensor]:
        """The same without the padding of slices, which holds whatever was in memory."""
        if self.form != "slices":
            return self.local_masters()
        from deepspeed.utils import safe_get_local_fp32_param

        found = []
        for parameter in self.trainables.values():
            piece = safe_get_local_fp32_param(parameter).reshape(-1)
            before = torch.distributed.get_rank(parameter.ds_process_group) * len(piece)
            piece = piece[: max(parameter.ds_numel - before, 0)]
            # from a disk it is a view into a buffer that the next one overwrites
            found.append(piece.clone() if self._on_disk() else piece)
        return found

    def optimized(self) -> list[nn.Parameter]:
        """The module's parameters that the optimizer updates."""
        wrapper = self.engine.optimizer
        if self.form == "plain":
            groups = [group["params"] for group in wrapper.param_groups]
        elif self.form == "flat":
            groups = wrapper.bit16_groups if hasattr(wrapper, "bit16_groups") else wrapper.bf16_groups
        else:
            groups = wrapper.fp16_groups
        return [parameter for group in groups for parameter in group]

    def read(self, parameter: nn.Parameter, moment: str | None = None) -> Tensor:
        """The whole fp32 value (or Adam moment) of one trainable, in its shape, as a new CPU tensor. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.form in ("plain", "twins"):
            master = self._twins.get(id(parameter), parameter)
            value = master if moment is None else self.adam.state[master][moment]
        elif moment is None:
            value = safe_get_full_fp32_param(parameter)
        else:
            self._link_moments()
            value = safe_get_full_optimizer_state(parameter, moment)
        return value.detach().to("cpu", torch.float32, copy=True)

    def write(self, parameter: nn.Parameter, value: Tensor, moment: str | None = None) -> None:
        """Set the fp32 value (or Adam moment) of one trainable from a whole tensor of its shape."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        if self.form in ("plain", "twins"):
            master = self._twins.get(id(parameter), parameter)
            target = master.data if moment is None else self.adam.state[master][moment]
            target.copy_(value)
        elif self.form == "flat":
            parameter.set_full_hp_param(value, moment)
        else:
            # DeepSpeed's whole-tensor setter reads past the end when the ranks' slices are padded; so cut here.
            size = parameter.ds_tensor.numel()
            group = parameter.ds_process_group
            padded = torch.zeros(size * torch.distributed.get_world_size(group), dtype=torch.float32)
            padded[: value.numel()] = value.reshape(-1)
            piece = padded.narrow(0, size * torch.distributed.get_rank(group), size)
            if moment is None:
                safe_set_local_fp32_param(parameter, piece)
            else:
                safe_set_local_optimizer_state(parameter, piece, moment)

    def write_model(self, values: dict[str, Tensor]) -> None:
        """Put whole values into the module itself, in its own dtype, so that the next forward uses them.
        Collective.
        """
        if self.form != "slices":
            for name, value in values.items():
                self.trainables[name].data.copy_(value)
            return
        import deepspeed

        parameters = [self.trainables[name] for name in values]
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
            for name, value in values.items():
                self.trainables[name].data.copy_(value)

    def has_moments(self) -> bool:
        """Whether Adam has made its state (it does so in its first step)."""
        return all("exp_avg" in self.adam.state.get(master, {}) for master in self.local_masters())

    def make_moments(self, step: int) -> None:
        """Give Adam zero moments and `step`; the partitioned forms can only be written to once they exist."""
        wrapper = self.engine.optimizer
        if self._on_disk():
            wrapper.optimizer_swapper.purge_state()  # else it would go on writing the tensors that were there before
        for number, master in enumerate(self.local_masters()):
            on_disk = self._on_disk(number)
            if on_disk:
                wrapper._optimizer_states_and_gradient_swap_in(number)
            moments = {name: torch.zeros_like(master, requires_grad=False) for name in MOMENTS}
            self.adam.state[master] = {"step": torch.tensor(float(step)), **moments}
            if on_disk:
                wrapper._optimizer_states_and_gradient_swap_out(number)
        self._linked = False
        self._link_moments()

    def _on_disk(self, number: int | None = None) -> bool:
        """Whether DeepSpeed keeps the fp32 tensor of this number and its moments on NVMe; without one: any of them."""
        if self.form != "slices" or not self.engine.optimizer.swap_optimizer:
            return False
        return number is None or self.engine.optimizer._swappable_optimizer_subgroup(number)

    def _link_moments(self) -> None:
        """Lets DeepSpeed find the moments of flat vectors. It does so itself after the first update of the first group
        of parameters, when those of other groups are not there yet."""
        wrapper = self.engine.optimizer
        if self.form == "flat" and not self._linked:
            wrapper._hp_optimizer_states_linked = False
            wrapper._lazy_init_hp_params_optimizer_state()
            self._linked = True

    def adam_step(self) -> int:
        """How many updates Adam has made (skipped fp16 steps do not count)."""
        steps = [int(state["step"]) for state in self.adam.state.values() if "step" in state]
        return max(steps, default=0)

    def loss_scaler_fields(self) -> dict[str, float]:
        """The state of the fp16 loss scaler by field name; empty where none is used."""
        scaler = self._loss_scaler()
        return {
            name: float(getattr(scaler, name)) for name in _LOSS_SCALER_FIELDS if _is_number(scaler, name)
        }

    def set_loss_scaler_fields(self, fields: dict[str, float]) -> None:
        """Put back what `loss_scaler_fields` gave. Fields that this stage's scaler lacks are left out."""
        scaler = self._loss_scaler()
        for name, value in fields.items():
            if _is_number(scaler, name):
                setattr(scaler, name, type(getattr(scaler, name))(value))

    def _loss_scaler(self) -> Any:
        return self.engine.optimizer.loss_scaler if self.engine.fp16_enabled() else None


def _is_number(holder: Any, name: str) -> bool:
    return isinstance(getattr(holder, name, None), (int, float))
