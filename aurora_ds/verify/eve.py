"""The golden cases of EVE's trunk and of its expert layer: how each is built from its `config.json`, and what is
compared.

All run as `released`, with the recorded noise of the second expert, or none. Intermediate values are read by hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from aurora_ds.backbones.eve import EveStates, EveTrunk
from aurora_ds.backbones.experts import ExpertFeedForward, Gate, Routing
from aurora_ds.config import TextConfig, VisionConfig
from aurora_ds.config.eve import EveConfig, ExpertConfig
from aurora_ds.errors import AuroraError
from aurora_ds.verify.golden import Golden

UNUSED = ("backbone.position_ids_vision", "backbone.position_ids_text")
BRANCHES = ("attn", "mlp_imag", "mlp_text", "mlp_vl", "mlp_moe")


def sizes(golden: Golden) -> tuple[VisionConfig, TextConfig, EveConfig]:
    """Sizes of the golden's trunk."""
    c, task = golden.config["vlmo_config"], golden.config["task_config"]
    lower = c.get("single_ffn", {"type": "vl"})
    vision = VisionConfig(
        image_size=task["image_res"],
        patch_size=c["patch_size"],
        width=c["vision_width"],
        depth=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        mlp_ratio=c["intermediate_size"] / c["vision_width"],
        drop_path=c["drop_path_rate"],
    )
    text = TextConfig(
        vocab_size=c["vocab_size"],
        width=c["vision_width"],
        max_positions=task["texts"]["max_tokens"],
        dropout=0.0,
        attention_dropout=0.0,
    )
    config = EveConfig(
        top=c["ffn_type"],
        top_layers=c["moeffn_layers"] if c["ffn_type"] == "moe" else c["vlffn_layers"],
        lower=lower["type"],
        moe=_experts(c["moe_param"]),
        lower_moe=_experts(lower.get("moe_param", {"num_experts": 2, "topk": 2, "type_route": True})),
        relative_positions=c["relative_position_embed"],
        mask_embedding=golden.config.get("mask_embed", False),
        pixels="as_they_are",
        released=True,
    )
    return vision, text, config


def _experts(recorded: dict[str, Any]) -> ExpertConfig:
    return ExpertConfig(
        experts=recorded["num_experts"],
        topk=recorded["topk"],
        modality_embedding=recorded["type_route"],
    )


def weights(golden: Golden) -> dict[str, Tensor]:
    """The golden's weights, without the position numbers that only the published model stores."""
    stored = load_file(golden.folder / "weights.safetensors")
    return {name: tensor for name, tensor in stored.items() if name not in UNUSED}


def fill(module: nn.Module, tensors: dict[str, Tensor], golden: Golden) -> None:
    """Every tensor into its place. Raises AuroraError when one is missing or left over."""
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    if missing or unexpected:
        raise AuroraError(
            f"The weights of {golden.folder} do not fit its config.json: missing {', '.join(missing) or 'none'}; "
            f"unexpected {', '.join(unexpected) or 'none'}."
        )


def set_noise(module: nn.Module, golden: Golden) -> None:
    """The recorded noise call by call, or none."""
    recorded: Iterator[Tensor] | None = None
    if golden.config["gumbel_noise"] == "recorded":
        numbers = sorted(int(n.removeprefix("gumbel.")) for n in golden.inputs if n.startswith("gumbel."))
        recorded = iter([golden.inputs[f"gumbel.{number}"] for number in numbers])
    for gate in module.modules():
        if isinstance(gate, Gate):
            gate.noise = torch.zeros_like if recorded is None else lambda _: next(recorded)


def routing_values(routing: Routing) -> dict[str, Tensor]:
    """A routing under the names of the records."""
    values = {
        "logits": routing.logits,
        "l_aux": routing.balance,
        "exp_counts": routing.first_counts,
        "capacity": torch.tensor(routing.capacity),
    }
    for choice in range(2):
        kept = routing.kept[choice]
        values |= {
            f"expert{choice + 1}": routing.experts[choice],
            f"kept{choice + 1}": kept,
            f"slot{choice + 1}": routing.slots[choice] * kept,
            f"weight{choice + 1}": routing.weights[choice],
        }
    return values


class Watched:
    """Collects what the layers of a trunk give during one pass, under the names of the records."""

    def __init__(self, trunk: EveTrunk) -> None:
        self.trunk, self.values = trunk, {}

    def __enter__(self) -> dict[str, Tensor]:
        layers = self.trunk.encoder.layers
        self.hooks = [layers[0].register_forward_pre_hook(lambda _, inputs: self._keep("embed", inputs[0]))]
        for i, layer in enumerate(layers):
            self._watch(layer, f"layer{i}.out")
            for branch in BRANCHES:
                if hasattr(layer, branch):
                    self._watch(getattr(layer, branch), f"layer{i}.{branch}")
            if hasattr(layer, "mlp_moe"):
                self.hooks.append(layer.mlp_moe.moe.gate.register_forward_hook(self._routing(i)))
        return self.values

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _keep(self, name: str, value: Tensor) -> None:
        self.values[name] = value.detach()

    def _watch(self, module: nn.Module, name: str) -> None:
        def hook(_: nn.Module, __: object, output: Any) -> None:
            self._keep(name, output[0] if isinstance(output, tuple) else output)

        self.hooks.append(module.register_forward_hook(hook))

    def _routing(self, layer: int) -> Callable[[nn.Module, object, Routing], None]:
        def hook(_: nn.Module, __: object, routing: Routing) -> None:
            for name, value in routing_values(routing).items():
                self._keep(f"layer{layer}.moe.{name}", value)

        return hook


def compare_pass(golden: Golden, tag: str, values: dict[str, Tensor]) -> None:
    """What was recorded of one pass."""
    for name, value in values.items():
        if f"{tag}.{name}" in golden.outputs:
            golden.compare(f"{tag}.{name}", value)


def trunk(golden: Golden) -> None:
    """Passes of the trunk in evaluation, one after the other."""
    model = nn.ModuleDict({"backbone": EveTrunk(*sizes(golden))}).eval()
    fill(model, weights(golden), golden)
    set_noise(model, golden)
    sums: dict[int, list[Tensor]] = {}
    for run in golden.config["runs"]:
        inputs = {}
        if run["image"]:
            inputs["image"] = golden.inputs["image"]
        if run.get("image_mask"):
            inputs["image_mask"] = golden.inputs["image_mask"]
        if run["text"]:
            inputs |= {
                "input_ids": golden.inputs["text_ids"],
                "attention_mask": golden.inputs["text_atts"],
            }
        with Watched(model["backbone"]) as values, torch.no_grad():
            states: EveStates = model["backbone"](**inputs)
        mask = states.mask
        values["attention_mask"] = torch.ones(states.states.shape[:2]) if mask is None else mask
        values["final"] = states.states
        compare_pass(golden, run["tag"], values)
        for i in range(len(model["backbone"].encoder.layers)):
            if f"layer{i}.moe.l_aux" in values:
                sums.setdefault(i, []).append(values[f"layer{i}.moe.l_aux"])
    for i, losses in sums.items():
        golden.compare(f"accumulated.layer{i}.aux_loss_calls", torch.tensor(len(losses)))
        golden.compare(f"accumulated.layer{i}.aux_loss_sum", torch.stack(losses).sum())


def expert_layer(golden: Golden) -> None:
    """One expert layer alone, forward and backward, per kind of input."""
    c = golden.config["moe"]
    config = ExpertConfig(experts=c["num_experts"], topk=c["topk"], modality_embedding=c["type_route"])
    layer = ExpertFeedForward(c["hidden_size"], c["intermediate_size"], config, released=True)
    model = nn.ModuleDict({"mlp_moe": layer}).train(golden.config["train_mode"])
    fill(model, weights(golden), golden)
    set_noise(model, golden)
    vision_tokens = {"vl": c["num_vision_tokens"], "vision": None, "text": 0}
    for tag in golden.config["runs"]:
        x = golden.inputs[f"{tag}.x"].clone().requires_grad_()
        count = vision_tokens[golden.config["modes"][tag]]
        model.zero_grad()
        out, routing = layer(x, x.shape[1] if count is None else count)
        loss = (out * golden.inputs[f"{tag}.loss_weight"]).sum() + golden.config["aux_coef"] * routing.balance
        loss.backward()
        values = routing_values(routing) | {"out": out, "loss": loss, "gates": routing.logits.softmax(-1)}
        values["combine_weights"] = _combine_weights(routing, c["num_experts"])
        values["grad.x"] = x.grad
        values |= {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        compare_pass(golden, tag, values)


def _combine_weights(routing: Routing, experts: int) -> Tensor:
    """The (tokens, experts, capacity) tensor that published code multiplies with, for comparison alone."""
    tokens = routing.experts.shape[1]
    dense = torch.zeros(tokens, experts, routing.capacity)
    for chosen, kept, slots, found in zip(
        routing.experts, routing.kept, routing.slots, routing.weights.detach(), strict=True
    ):
        rows = kept.nonzero().flatten()
        dense[rows, chosen[rows], slots[rows]] += found[rows]
    return dense


CASES: dict[str, Callable[[Golden], None]] = {"trunk": trunk, "moe_layer": expert_layer}
