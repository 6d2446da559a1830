"""What the log shows of experts: against the formulas, over ranks, and as TensorBoard reads it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from aurora_ds.backbones.experts import ExpertFeedForward
from aurora_ds.config.eve import ExpertConfig
from aurora_ds.runtime import process_group
from aurora_ds.runtime.expert_figures import ExpertFigures
from aurora_ds.runtime.monitor import Monitor
from aurora_ds.runtime.ranks import Ranks

EXPERTS = 4


class Trunk(nn.Module):
    """One layer of experts where a backbone has it."""

    def __init__(self, **options: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.Module()
        layer.moe = ExpertFeedForward(8, 16, ExpertConfig(experts=EXPERTS, **options))
        nn.init.normal_(layer.moe.moe.gate.wg.weight)
        self.layers = nn.ModuleList([nn.Identity(), layer])


class Body(nn.Module):
    """Gives the trunk its name in a task."""

    def __init__(self, **options: float) -> None:
        super().__init__()
        self.encoder = Trunk(**options)

    @property
    def layer(self) -> ExpertFeedForward:
        return self.encoder.layers[1].moe


X = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(1))
MASK = torch.arange(20)[None] < torch.tensor([[20], [15], [18]])


def test_figures_are_those_of_the_formulas() -> None:
    body = Body(capacity_factor=0.5)
    figures = ExpertFigures(body)
    routing = body.layer(X, 12, MASK)[1]
    shown, loads = figures.shown({"loss": 1.0, **figures.own()})
    assert shown.pop("loss") == 1.0 and len(shown) == 8
    probabilities = routing.logits.detach().softmax(-1)
    is_vision = (torch.arange(20) < 12).repeat(3)
    for name, tokens in (("vision", is_vision), ("text", ~is_vision)):
        own = tokens & MASK.flatten()
        load = torch.bincount(routing.experts[:, own].flatten(), minlength=EXPERTS)
        entropy = -(probabilities[own] * probabilities[own].log()).sum(1).mean() / math.log(EXPERTS)
        expected = {
            "load_max": load.max() * EXPERTS / load.sum(),
            "load_min": load.min() * EXPERTS / load.sum(),
            "entropy": entropy,
            "dropped": (~routing.kept[:, own]).float().mean(),
        }
        assert loads[f"experts/layer01/{name}/load"] == load.tolist()
        assert load.sum() == 2 * own.sum()
        for figure, value in expected.items():
            assert shown[f"experts/layer01/{name}/{figure}"] == pytest.approx(float(value), rel=1e-5), figure
    assert shown["experts/layer01/vision/dropped"] > 0


def test_only_training_counts_from_one_line_to_the_next() -> None:
    body = Body()
    figures = ExpertFigures(body)
    names = figures.own().keys()
    body.eval()
    body.layer(X, 12)
    assert figures.own().keys() == names and not any(figures.own().values())
    assert figures.shown(figures.own()) == ({}, {}), "a modality without tokens has no figures"
    body.train()
    body.layer(X, 20)
    shown, _ = figures.shown(figures.own())
    assert {name.split("/")[2] for name in shown} == {"vision"}
    assert not any(figures.own().values())


def test_of_two_ranks_the_sums_count(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = Body().eval(), []
    whole.train().layer.moe.gate.noise = torch.zeros_like
    for rows in (X, X[:2], X[2:]):
        figures = ExpertFigures(whole)
        whole.layer(rows, 12)
        parts.append(figures.own())
    ranks = Ranks()
    table = [list(parts[1].values()), list(parts[2].values())]
    monkeypatch.setattr(process_group, "gather_numbers", lambda row: table)
    assert figures.shown(ranks.reduce(parts[1])) == figures.shown(parts[0])


def test_tensorboard_reads_scalars_and_a_bar_for_each_expert(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, SCALARS, EventAccumulator

    body = Body()
    figures, monitor = ExpertFigures(body), Monitor(tmp_path)
    for step in (1, 2):
        body.layer(X, 12, MASK)
        shown, loads = figures.shown(figures.own())
        monitor.scalars({f"train/{name}": value for name, value in shown.items()}, step)
        for name, load in loads.items():
            monitor.counts(f"train/{name}", load, step)
    monitor.close()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "by_step"), {HISTOGRAMS: 0, SCALARS: 0}).Reload()
    tags = [f"train/experts/layer01/{name}" for name in ("vision", "text")]
    assert set(events.Tags()["scalars"]) >= {f"{tag}/entropy" for tag in tags}
    assert set(events.Tags()["histograms"]) == {f"{tag}/load" for tag in tags}
    last = events.Histograms(f"{tags[0]}/load")[-1]
    assert last.step == 2 and last.histogram_value.bucket == loads["experts/layer01/vision/load"]
    assert last.histogram_value.bucket_limit == [1, 2, 3, 4]
