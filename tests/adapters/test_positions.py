"""Which grid a position embedding was made for, where its rows alone do not say so."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from vitquant.adapters.adapt import adapt
from vitquant.adapters.names import lookup
from vitquant.adapters.positions import fit_positions, resample_pos_embed, roughness
from vitquant.architectures.float_vit import VisionTransformer

Grid = tuple[int, int]


def smooth_table(grid: Grid, dim: int = 24, prefix: int = 1) -> Tensor:
    """Positions as training leaves them: neighbours are alike. The prefix rows are not."""
    generator = torch.Generator().manual_seed(0)
    cells = interpolate(torch.randn(1, dim, 4, 4, generator=generator), size=grid, mode="bicubic")
    return torch.cat([torch.randn(1, prefix, dim, generator=generator), cells.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize(
    ("wanted", "default"), [((7, 28), (14, 14)), ((28, 7), (14, 14)), ((8, 32), (37, 37)), ((4, 16), (8, 8))]
)
def test_a_table_that_fits_as_it_is_stays_as_it_is(wanted: Grid, default: Grid) -> None:
    table = smooth_table(wanted)
    fitted, note = fit_positions(table, 1, wanted, default)
    assert fitted is table
    assert note is not None
    assert note.endswith("it is used unchanged, for {}x{}".format(*wanted))


@pytest.mark.parametrize(
    ("wanted", "default", "made_for"),
    [((7, 28), (14, 14), (14, 14)), ((8, 32), (37, 37), (16, 16)), ((14, 14), (7, 28), (7, 28))],
)
def test_values_of_another_grid_are_resampled_from_it(wanted: Grid, default: Grid, made_for: Grid) -> None:
    table = smooth_table(made_for)
    fitted, note = fit_positions(table, 1, wanted, default)
    assert torch.equal(fitted, resample_pos_embed(table, made_for, wanted, 1))
    assert note is not None
    assert "its values match {}x{}".format(*made_for) in note


def test_values_without_structure_are_taken_as_they_are() -> None:
    table = torch.randn(1, 1 + 196, 24, generator=torch.Generator().manual_seed(1))
    fitted, note = fit_positions(table, 1, (7, 28), (14, 14))
    assert fitted is table
    assert note == ("the position embedding's 196 rows match 7x28 and 14x14 patches; it is used unchanged, for 7x28")


def test_the_only_grid_needs_no_note() -> None:
    table = smooth_table((3, 5), prefix=2)
    assert fit_positions(table, 2, (3, 5), (7, 7)) == (table, None)
    assert fit_positions(table, 2, (4, 4), (3, 5))[1] == "position embedding resampled from 3x5 to 4x4 patches"
    unfit = torch.zeros(1, 1 + 17, 8)
    assert fit_positions(unfit, 1, (4, 4), (3, 5)) == (unfit, None)
    for odd in (torch.zeros(()), torch.zeros(15), torch.zeros(2, 16, 8)):
        assert fit_positions(odd, 1, (3, 5), (4, 4)) == (odd, None)


def test_roughness_by_hand() -> None:
    table = torch.tensor([0.0, 1.0, 4.0, 5.0]).reshape(1, 4, 1)
    assert roughness(table, (2, 2)) == 16 + 1  # down 4, right 1
    assert roughness(table, (1, 4)) == pytest.approx((1 + 9 + 1) / 3)


@pytest.mark.timm
@pytest.mark.parametrize(
    ("img_size", "made_for"),
    [((112, 448), (7, 28)), ((64, 256), (8, 8))],  # timm resamples the first, and not the second
)
def test_the_proof_follows_the_reading(img_size: Grid, made_for: Grid, tmp_path: Path) -> None:
    spec = lookup("vit_tiny_patch16_224", img_size=img_size).spec
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VisionTransformer(spec).state_dict().items()}
    state = {key: torch.randn(shape, generator=generator) * 0.2 for key, shape in shapes.items()}
    state["pos_embed"] = smooth_table(made_for, spec.embed_dim)
    save_file(state, tmp_path / "w.safetensors")
    model = adapt("vit_tiny_patch16_224", weights=tmp_path / "w.safetensors", img_size=img_size)
    assert model.parity_db is not None
    assert model.parity_db > 100
    assert torch.equal(model.vit.pos_embed, state["pos_embed"]) == (made_for == spec.grid)
