"""The momentum model, in two forms.

`slot`: the one frozen backbone, computing with the adapter's momentum copies; costs as many numbers as are
trained. `twin`: a second backbone with the checkpoint's own `*_m` weights, moved toward the online one each
step, as published. Where those weights equal the online backbone both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from aurora_ds.errors import AuroraError
from aurora_ds.prompts import Prompts, PromptValues

ModelFactory = Callable[[], tuple[nn.Module, Prompts | None]]


def _load_copies(prompts: Prompts, state: dict[str, Tensor]) -> None:
    """The adapter's momentum copies out of saved `momentum.*` tensors; AuroraError when they are another run's."""
    copies = {n.removeprefix("momentum."): t.clone() for n, t in state.items() if n.startswith("momentum.")}
    wanted = {n: list(prompts.bank.get_parameter(n).shape) for n in prompts.bank.shadow_names()}
    # shapes are not compared where ZeRO-3 left none
    odd = sorted(
        n for n, shape in wanted.items() if n in copies and 0 not in shape and list(copies[n].shape) != shape
    )
    if copies and (set(copies) != set(wanted) or odd):
        raise AuroraError(
            f"The saved momentum copies are not those of these prompts: {sorted(set(wanted) - set(copies)) or 'none'} "
            f"missing, {sorted(set(copies) - set(wanted)) or 'none'} unexpected, {odd or 'none'} of another shape. "
            "Resume with the prompts settings of the saved run."
        )
    prompts.bank.shadow = copies


class SlotMomentum:
    """Momentum pass through the online backbone itself."""

    def __init__(self, model: nn.Module, prompts: Prompts, dropout: bool) -> None:
        self.model, self.prompts, self.dropout = model, prompts, dropout

    @contextmanager
    def __call__(self, values: PromptValues | None, decay: float) -> Iterator[nn.Module]:
        """The model with momentum `values` for the time of the block; the online values are back
        afterwards."""
        online, training = self.prompts.values, self.model.training
        self.prompts.values = values
        self.model.train(training and self.dropout)
        try:
            yield self.model
        finally:
            self.prompts.values = online
            self.model.train(training)

    def state(self) -> dict[str, Tensor]:
        return {f"momentum.{name}": value for name, value in self.prompts.bank.shadow.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        _load_copies(self.prompts, state)


class TwinMomentum:
    """Momentum pass through a second backbone, which follows the online one with the same decay.

    `still`: beginnings of names that keep their values, beside the temperature and the matching head. `without`: parts
    of the model that the pass never computes with; the second backbone has none."""

    def __init__(
        self,
        model: nn.Module,
        prompts: Prompts | None,
        factory: ModelFactory,
        weights: dict[str, Tensor] | None,
        dropout: bool,
        still: tuple[str, ...] = (),
        without: tuple[str, ...] = (),
    ) -> None:
        self.model, self.prompts, self.dropout = model, prompts, dropout
        self.still = ("temp", "itm_head.", *still)
        self.twin, self.twin_prompts = factory()
        for part in without:
            delattr(self.twin, part)
        needed = self.twin.state_dict().keys()
        state = {n: t for n, t in model.state_dict().items() if n in needed}
        if weights:
            state |= {n: t for n, t in weights.items() if n in needed}
        self.twin.load_state_dict(state, strict=True)
        self.twin.requires_grad_(False)
        if prompts is not None and weights:
            # the adapter's own copies start from the twin's heads, as a published `*_m` checkpoint has them
            for name, path in prompts.head_paths.items():
                for part in ("weight", "bias"):
                    if f"{path}.{part}" in weights and f"{name}_{part}" in prompts.bank.shadow_names():
                        prompts.bank.shadow.setdefault(
                            f"{name}_{part}", weights[f"{path}.{part}"].float().clone()
                        )

    @torch.no_grad()
    def _follow(self, decay: float) -> None:
        online = dict(self.model.named_parameters())
        pairs = [
            (p, online[n].detach().to(p.dtype))
            for n, p in self.twin.named_parameters()
            if n in online and not n.startswith(self.still)
        ]
        if any(p.numel() == 0 for p, _ in pairs):
            raise AuroraError(
                "momentum_model=twin needs whole parameters on every rank: use ZeRO stage "
                "0, 1 or 2, or momentum_model=slot."
            )
        torch._foreach_mul_([p for p, _ in pairs], decay)
        torch._foreach_add_([p for p, _ in pairs], [o for _, o in pairs], alpha=1 - decay)

    @contextmanager
    def __call__(self, values: PromptValues | None, decay: float) -> Iterator[nn.Module]:
        anchor = next(p for n, p in self.model.named_parameters() if n.startswith("visual_encoder."))
        device, dtype = anchor.device, anchor.dtype
        # The twin follows by thousandths a step, which 16 bits would round away: it is kept in fp32 and only
        # computes in 16.
        # Tensors that have shapes alone (`aurora-ds plan`) know no autocast: there it is in 16 as a whole.
        low = dtype in (torch.bfloat16, torch.float16) and device.type != "meta"
        self.twin.to(device, torch.float32 if low else dtype)
        self._follow(decay)
        if self.twin_prompts is not None:
            self.twin_prompts.values = values
        self.twin.train(self.model.training and self.dropout)
        with torch.autocast(device.type, dtype) if low else nullcontext():
            yield self.twin

    def state(self) -> dict[str, Tensor]:
        own = {f"twin.{n}": t for n, t in self.twin.state_dict().items()}
        shadow = (
            {} if self.prompts is None else {f"momentum.{n}": t for n, t in self.prompts.bank.shadow.items()}
        )
        return own | shadow

    def load(self, state: dict[str, Tensor]) -> None:
        self.twin.load_state_dict(
            {n.removeprefix("twin."): t for n, t in state.items() if n.startswith("twin.")}
        )
        if self.prompts is not None:
            _load_copies(self.prompts, state)
