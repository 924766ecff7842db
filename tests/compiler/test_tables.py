"""The tables of compiled programs: GELU without error, exponentials within half a unit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import vitquant
from support.integer_models import quantized
from vitquant.numerics.affine import dequantize, quantize
from vitquant.program import ops

SETTINGS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "a scale per channel": {"mlp_fc1": {"output": {"calibration_mode": "channel_wise"}}},
    "unsigned": {"mlp_fc1": {"output": {"bit_type": {"signed": False}}}, "mlp_gelu": {"bit_type": {"signed": False}}},
    "both per channel": {
        "mlp_fc1": {"output": {"calibration_mode": "channel_wise"}},
        "mlp_gelu": {"calibration_mode": "channel_wise"},
    },
    "12 bits": {"mlp_fc1": {"output": {"bit_type": {"bits": 12}}}},
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS.keys())
def test_gelu(changes: dict[str, Any]) -> None:
    """Every code of every channel: the simulator's to the bit, and the exact GELU's to half a code."""
    model = quantized(changes)
    program = vitquant.compile(model)
    values = program.values()
    lookups = [op for op in program.operations if isinstance(op, ops.Lookup)]
    assert len(lookups) == 2
    blocks: Any = model.blocks
    for block, op in zip(blocks, lookups, strict=True):
        before, after = values[op.x], op.out
        codes = np.arange(before.low, before.high + 1)
        found = op.tables[op.table_of].astype(np.int64)
        grids = (block.mlp.mlp_fc1.output.require_params(), block.mlp.mlp_gelu.require_params())
        columns = torch.from_numpy(codes)[:, None].expand(-1, len(op.table_of))
        simulated = quantize(torch.nn.functional.gelu(dequantize(columns, grids[0])), grids[1])
        assert np.array_equal(found.T, simulated.long().numpy())
        for channel, row in enumerate(found):
            scales = [float(v.spread(v.scale)[channel]) for v in (before, after)]
            zeros = [int(v.spread(v.zero_point)[channel]) for v in (before, after)]
            x = scales[0] * (codes - zeros[0])
            y = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]) / scales[1] + zeros[1]
            assert np.abs(row - np.clip(y, after.low, after.high)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    ("form", "top"), [("row", 255), ("diffusion", 255 * 256), ("uniform", 2**15 - 1), ("log2", 2**15 - 1)]
)
@pytest.mark.parametrize("mode", ["layer_wise", "channel_wise"])
def test_exponentials(form: str, top: int, mode: str) -> None:
    program = vitquant.compile(quantized({"intSoft": {"softmax": form}, "attn_kv_out": {"calibration_mode": mode}}))
    kinds = (ops.SoftmaxRow, ops.SoftmaxDiffusion, ops.SoftmaxUniform, ops.SoftmaxLog2)
    found = [op for op in program.operations if isinstance(op, kinds)]
    assert len(found) == 2
    for op in found:
        scale = program.values()[op.x].scale.astype(np.float64)
        exact = top * np.exp(-scale[:, None] * np.arange(op.table.shape[1]))
        assert op.table.shape == ((3 if mode == "channel_wise" else 1), 256)
        assert np.abs(op.table - exact).max() <= 0.5 + 1e-9
