"""Experts spread over ranks (`train.expert_parallel`), in DeepSpeed's groups for them.

With N, ranks 0 to N - 1 together hold every expert once, and so do the next N. These are DeepSpeed's expert-parallel
groups; ranks that hold the same experts are its expert-data-parallel groups, in which its engine sums the gradients of
parameters that are marked as DeepSpeed's own layer marks them. What leaves a rank (checkpoints, adapters) is gathered
and whole, so it is the same for every N.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aurora_ds.backbones.experts import ExpertList
from aurora_ds.config import TrainConfig
from aurora_ds.errors import AuroraError
from aurora_ds.runtime import process_group

_NUMBER = re.compile(r"\.experts\.(\d+)\.")


def is_expert(parameter: nn.Parameter) -> bool:
    """Whether ranks hold different values of it (DeepSpeed's mark)."""
    return not getattr(parameter, "allreduce", True)


def spread(task: nn.Module, config: TrainConfig, settings: dict[str, Any]) -> ExpertRanks | None:
    """Leave this rank its share of the experts of `task`; None where every rank is to hold all. Collective.

    `settings`: DeepSpeed's. Raises AuroraError where there are no experts, where ranks or experts cannot be shared
    equally, and for what DeepSpeed does not do with experts on other ranks.
    """
    size = config.expert_parallel
    if size == 1:
        return None
    said, lists = f"train.expert_parallel={size}", to_spread(task, size, process_group.world_size())
    zero = settings["zero_optimization"]
    if zero["stage"] == 3:
        raise AuroraError(
            f"{said} works with ZeRO stages 0 to 2: at stage 3 DeepSpeed cuts every parameter up over all ranks, "
            "experts too. Set train.zero_stage=2 to spread experts, or train.expert_parallel=1 to cut them up."
        )
    if zero["stage"] == 0 and config.precision != "fp32":
        raise AuroraError(
            f"{said} with train.precision={config.precision} needs ZeRO stage 1 or 2: at stage 0 DeepSpeed clips "
            "gradients by the norm of a rank's own experts. Set train.zero_stage=1."
        )
    if zero.get("offload_optimizer", {}).get("device", "none") != "none":
        raise AuroraError(
            f"{said} and zero_optimization.offload_optimizer do not go together. Remove one of them; experts on other "
            "ranks take no optimizer memory here."
        )
    return ExpertRanks(lists, size)


def to_spread(task: nn.Module, size: int, ranks: int) -> dict[str, ExpertList]:
    """The lists of experts of `task` by name, for groups of `size` of `ranks` ranks. Raises AuroraError where there are
    none, and where ranks or experts cannot be shared equally."""
    lists = {name: each for name, each in task.named_modules() if isinstance(each, ExpertList)}
    said = f"train.expert_parallel={size}"
    if not lists:
        raise AuroraError(f"{said}: this backbone has no experts. Set train.expert_parallel=1.")
    if ranks % size:
        raise AuroraError(
            f"{said}: {ranks} ranks are no multiple of it. Start a multiple of {size} ranks, or set "
            f"train.expert_parallel to a divisor of {ranks}."
        )
    for name, each in lists.items():
        if each.total % size:
            raise AuroraError(
                f"{said}: the {each.total} experts of {name} cannot be shared equally by {size} ranks. Set "
                f"train.expert_parallel to a divisor of {each.total}."
            )
    return lists


class ExpertRanks:
    """The spread experts of one task. Made by all ranks together, by `spread`."""

    def __init__(self, lists: dict[str, ExpertList], size: int) -> None:
        import deepspeed
        from deepspeed.utils import groups

        # with a process group there already, DeepSpeed takes that one
        deepspeed.comm.init_distributed(dist_backend=dist.get_backend(), verbose=False)
        groups._create_expert_and_data_parallel(size)
        self.name = f"ep_size_{size}"  # DeepSpeed's, for the groups of this size
        self.group: dist.ProcessGroup = groups._get_expert_parallel_group(self.name)
        self.size, self.rank = size, dist.get_rank(self.group)
        self._lists = lists
        self._every: dict[str, list[nn.Module]] = {}
        for name, each in lists.items():
            self._every[name] = self._leave(each)
            for parameter in each.parameters():
                parameter.allreduce, parameter.group_name = False, self.name

    def _leave(self, experts: ExpertList) -> list[nn.Module]:
        """Hold this rank's share, and free the memory of the others."""
        each = experts.total // self.size
        own = range(self.rank * each, (self.rank + 1) * each)
        every = experts.hold(own, self.group)
        for number, expert in enumerate(every):
            if number not in own:
                for parameter in expert.parameters():
                    parameter.data = parameter.data.new_empty(0)
        return every

    @contextmanager
    def known(self, task: nn.Module) -> Iterator[None]:
        """Inside, DeepSpeed makes an engine that knows of experts: it looks for a layer of its own class."""
        if not any(is_expert(each) and each.requires_grad for each in task.parameters()):
            yield
            return
        from deepspeed.moe.layer import MoE

        class Sign(MoE):
            def __init__(self, experts: int) -> None:
                nn.Module.__init__(self)
                self.num_experts = experts

            def set_deepspeed_parallelism(self, *_: Any) -> None:
                """The groups are there."""

        task.spread_experts = Sign(max(each.total for each in self._lists.values()))
        try:
            yield
        finally:
            del task.spread_experts

    def among(self, names: Iterable[str]) -> set[str]:
        """Those names that are of experts."""
        return {name for name in names if self._list_of(name) is not None}

    def _list_of(self, name: str) -> str | None:
        return next((each for each in self._lists if name.startswith(f"{each}.")), None)

    def gathered(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of this rank by name -> of all experts, on the CPU of every rank. Collective.

        Names are those of parameters, perhaps with an ending."""
        result = {}
        for name, value in values.items():
            prefix = self._list_of(name)
            if prefix is None:
                result[name] = value
                continue
            shift = self._lists[prefix].total // self.size
            here = value.to(process_group.device()).contiguous()
            pieces = [torch.empty_like(here) for _ in range(self.size)]
            dist.all_gather(pieces, here, group=self.group)
            for rank, piece in enumerate(pieces):
                result[_moved(name, prefix, shift * (rank - self.rank))] = piece.cpu()
        return result

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Σ over the ranks of the group, which hold every expert once. Collective."""
        dist.all_reduce(value, group=self.group)
        return value

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, every rank holds all experts, and forwards need no other rank. Enter and leave together."""
        for name, experts in self._lists.items():
            every, each = self._every[name], experts.total // self.size
            # number by number of the share: the n-th expert of every rank travels together
            for own in range(each):
                peers = [every[rank * each + own] for rank in range(self.size)]
                for parameters in zip(*(expert.parameters() for expert in peers), strict=True):
                    here = parameters[self.rank].data.contiguous()
                    pieces = [torch.empty_like(here) for _ in peers]
                    dist.all_gather(pieces, here, group=self.group)
                    for rank, (parameter, piece) in enumerate(zip(parameters, pieces, strict=True)):
                        if rank != self.rank:
                            parameter.data = piece
            experts.hold_all(every)
        try:
            yield
        finally:
            for experts in self._lists.values():
                self._leave(experts)


def _moved(name: str, prefix: str, by: int) -> str:
    """The name with another number of its expert."""
    number = _NUMBER.match(name, len(prefix))
    if number is None:
        raise ValueError(f"{name} is no name of an expert")
    return f"{name[: number.start(1)]}{int(number[1]) + by}{name[number.end(1) :]}"
