"""EVE's table of relative positions for images of another size than those that it was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aurora_ds.backbones.checkpoint import load_backbone
from aurora_ds.backbones.eve_positions import resize_table, spline, table_rows
from aurora_ds.backbones.models import new_model
from aurora_ds.backbones.published import to_published
from aurora_ds.config import BackboneConfig
from aurora_ds.errors import AuroraError

TEXTS = 10


def table(side: int, value) -> torch.Tensor:
    """One column: `value(dy, dx)` for the patches' differences, numbers for the other entries."""
    axis = torch.arange(-(side - 1), side, dtype=torch.float32)
    grid = value(axis[:, None], axis[None]).expand(len(axis), len(axis)).reshape(-1, 1)
    return torch.cat([grid, torch.arange(5.0 + 2 * TEXTS)[:, None]])


def patches(of: torch.Tensor, side: int) -> torch.Tensor:
    return of[: (2 * side - 1) ** 2, 0].view(2 * side - 1, 2 * side - 1)


def test_a_spline_gives_cubics_exactly_and_stops_at_the_ends() -> None:
    places = torch.tensor([-7.0, -3, -1.5, 0, 1, 2, 6], dtype=torch.float64)
    wanted = torch.linspace(-7, 6, 40, dtype=torch.float64)
    for power in range(4):
        torch.testing.assert_close(
            spline(places, wanted) @ places**power, wanted**power, rtol=1e-9, atol=1e-9
        )
    beyond = torch.tensor([-20.0, 20.0], dtype=torch.float64)
    torch.testing.assert_close(spline(places, beyond) @ places, places[[0, -1]])
    torch.testing.assert_close(spline(places, places), torch.eye(7, dtype=torch.float64))


@pytest.mark.parametrize(("before", "after"), [(4, 7), (14, 24), (7, 4), (2, 3)])
def test_the_new_table_has_its_rows_its_middle_and_its_symmetry(before: int, after: int) -> None:
    old = table(before, lambda dy, dx: torch.exp(-(dy**2 + dx**2) / 8) + 0 * dx)
    new = resize_table(old, after, TEXTS)
    assert len(new) == table_rows(after, TEXTS)
    assert torch.equal(new[(2 * after - 1) ** 2 :], old[(2 * before - 1) ** 2 :]), (
        "not of patches: as they were"
    )
    grid = patches(new, after)
    assert grid[after - 1, after - 1] == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(grid, grid.flip(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(grid, grid.t(), rtol=0, atol=1e-5)


def test_larger_images_reach_the_ends_and_neighbours_stay_neighbours() -> None:
    old = table(14, lambda dy, dx: dy + 0 * dx)
    grid = patches(resize_table(old, 24, TEXTS), 24)
    column = grid[:, 5]
    assert (column.diff() > 0).all()
    torch.testing.assert_close(grid, column[:, None].expand_as(grid), rtol=0, atol=1e-4)
    assert column[-1] == pytest.approx(13, abs=0.01) and column[0] == pytest.approx(-13, abs=0.01)
    assert column[24] == pytest.approx(1.0, abs=0.01), "the nearest difference keeps its value"


def test_a_file_is_read_for_larger_images(tmp_path: Path) -> None:
    section = {
        "name": "eve",
        "head": "retrieval",
        "eve": {"relative_positions": True, "top_layers": [1], "moe": {"experts": 2}},
        "vision": {"image_size": 16, "patch_size": 4, "width": 8, "depth": 2, "heads": 2},
        "text": {"vocab_size": 20, "width": 8, "depth": 2, "heads": 2, "max_positions": TEXTS},
    }
    model = new_model(BackboneConfig.model_validate(section))
    stored = model.backbone.encoder.relative_position_bias_table
    torch.nn.init.normal_(stored)
    save_file(to_published(model), tmp_path / "eve.safetensors")
    section["vision"]["image_size"] = 24
    config = BackboneConfig.model_validate({**section, "checkpoint": str(tmp_path / "eve.safetensors")})
    read = load_backbone(config).model
    found = read.backbone.encoder.relative_position_bias_table
    torch.testing.assert_close(found, resize_table(stored.detach(), 6, TEXTS))
    assert read.backbone(torch.zeros(1, 3, 24, 24)).states.shape == (1, 37, 8)


def test_of_the_same_size_nothing_changes() -> None:
    old = table(5, lambda dy, dx: dy * dx)
    assert resize_table(old, 5, TEXTS) is old


def test_other_text_positions_are_refused() -> None:
    with pytest.raises(AuroraError, match=r"12 text positions. Set backbone\.text\.max_positions"):
        resize_table(table(5, lambda dy, dx: dy * dx), 5, 12)
