"""The shipped recipes: complete models in integers, found by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import vitquant
from support.integer_models import PREPROCESSING, disagreements, pixels, tiny_spec
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.architectures.vit import QuantViT
from vitquant.cli.main import main
from vitquant.config import find_config, recipe_file, recipe_names, section_of, shipped_names
from vitquant.layers.linear import WeightPoint


def test_recipes_are_shipped_files_from_wide_to_narrow() -> None:
    assert {recipe_file(name) for name in recipe_names()} < set(shipped_names())
    widths = [[int(bits) for bits in re.findall("[0-9]+", name)] for name in recipe_names()]
    assert widths == sorted(widths, reverse=True)
    assert find_config("recipes/w8a8.yaml").samefile(find_config("configs/recipes/w8a8.yaml"))


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_its_name_says_and_how_it_is_used(name: str) -> None:
    text = Path(find_config(recipe_file(name))).read_text(encoding="utf-8")
    assert f"vitquant quantize --recipe {name} " in text
    weights, activations = re.findall("[0-9]+", name)[:2]
    config = vitquant.ModelConfig.from_yaml(recipe_file(name)).open()
    for point in ("attn_qkv.weight", "attn_proj.weight", "mlp_fc1.weight", "mlp_fc2.weight"):
        settings = config[f"blocks.11.{point}"]
        assert settings is not None
        assert settings.bit_type.bits == int(weights)
    for point in ("norm1", "attn_q_out", "attn_k_out", "attn_v_input", "attn_v_out", "norm2", "mlp_gelu"):
        settings = config[f"blocks.11.{point}"]
        assert settings is not None
        assert settings.bit_type.bits == int(activations)


@pytest.mark.job
@pytest.mark.filterwarnings("ignore::vitquant.calibration.repair.run.RepairWarning")
@pytest.mark.parametrize("name", recipe_names())
def test_a_model_by_a_recipe_ships_and_its_integers_equal_the_simulation(name: str) -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(tiny_spec(layer_scale=True)).eval()
    model = vitquant.calibrate(
        QuantViT(vit, vitquant.ModelConfig.from_yaml(recipe_file(name)), PREPROCESSING), pixels(16)
    )
    stays = [p.name for p in model.point_modules().values() if not p.active]
    assert {section_of(point) for point in stays} <= {
        "patch_embed.output",
        "attn_qkv.output",
        "attn_proj.output",
        "mlp_fc2.output",
        "head.output",
    }  # these are requantized at the next point
    assert all(p.active for p in model.point_modules().values() if isinstance(p, WeightPoint))
    assert disagreements(model, vitquant.compile(model), pixels(4, seed=1)) == {}


def test_the_command_line_knows_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["quantize", "--model", "vit_tiny_patch16_224", "--weights", "none", "--calib", "none", "--eval", "none"]
    with pytest.raises(SystemExit) as stopped:
        main([*base, "--recipe", "w9a9"])
    assert stopped.value.code == 2
    assert f"no recipe is called 'w9a9'; there are {', '.join(recipe_names())}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*base, "--recipe", "w8a8", "--config", "vit_int8.yaml"])
    assert stopped.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
