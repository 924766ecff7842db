"""Write the golden artifacts: tiny saved models, what they give for a few images, a program, and the record of a run.

    python tests/golden/make_golden.py

Run it only when a format changes; then keep the old files beside the new. Releases must go on reading them.
`run_before_record` is the summary of a vitquant that did not write the configuration into it.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.architectures.model import QuantModel
from vitquant.artifact.storage import save
from vitquant.compiler.lowering import compile as compile_program
from vitquant.config import load_config_from_yaml
from vitquant.data import Preprocessing
from vitquant.executors.reference import Reference
from vitquant.program.storage import save_program
from vitquant.report.files import run_files
from vitquant.workflows.job import run
from vitquant.workflows.quantize import quantize

FOLDER = Path(__file__).parent / "tiny_vit_v1"
PACKED = Path(__file__).parent / "tiny_vit_v2"
PACKED_PROGRAM = Path(__file__).parent / "program_v3_packed"
RUN = Path(__file__).parent / "run_record"
SPEC = ViTSpec(
    img_size=(8, 8),
    patch_size=(4, 4),
    embed_dim=16,
    depth=1,
    num_heads=2,
    mlp_hidden=32,
    num_classes=5,
    reg_tokens=1,
    layer_scale=True,
)
PREPROCESSING = Preprocessing((8, 8), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make_vit() -> VisionTransformer:
    generator = torch.Generator().manual_seed(0)
    vit = VisionTransformer(SPEC).eval()
    with torch.no_grad():
        for name, value in vit.named_parameters():
            near_one = "norm" in name and name.endswith("weight")
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3 + near_one)
    return vit


def pixels(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def main() -> None:
    float_model = FloatModel("tiny", make_vit(), PREPROCESSING)
    write_model(quantize(float_model, "vit_int8.yaml", calibration=pixels(64, seed=1)), FOLDER)
    write_packed(float_model)
    write_run(float_model)


def write_model(model: QuantModel, folder: Path) -> None:
    """A saved model, and what it gives."""
    images = pixels(64, seed=2)
    outputs = model(PREPROCESSING.normalize(images))
    # Images on which no value lies so near a tie that another order of summation could round it the other way.
    again = model.double()(PREPROCESSING.normalize(images).double()).float()
    safe = ((outputs - again).abs().amax(1) < 1e-6).nonzero().flatten()[:4]
    save(model.float(), folder)
    save_file({"images": images[safe], "outputs": outputs[safe].contiguous()}, folder / "expected.safetensors")
    print(f"{folder}: {len(safe)} images, the first gives {[round(v, 4) for v in outputs[safe[0]].tolist()]}")


def write_packed(model: FloatModel) -> None:
    """A saved model and a program with weights of 2, 3, 4 and 6 bits, in groups and without."""
    bits = {"*.weight": (4, 5), "blocks.0.attn_proj.weight": (3, 16), "blocks.0.mlp_fc1.weight": (2, 0)}
    bits |= {"blocks.0.mlp_fc2.weight": (6, 0), "patch_embed.weight": (8, 0)}
    overrides = {name: {"bit_type": {"bits": b}, "weight_groups": group} for name, (b, group) in bits.items()}
    config = {**load_config_from_yaml("vit_int8.yaml"), "overrides": overrides, "repair": ["gptq"]}
    quantized = quantize(model, config, calibration=pixels(64, seed=1))
    write_model(quantized, PACKED)
    program = compile_program(quantized)
    save_program(program, PACKED_PROGRAM)
    images, names = pixels(4, seed=3), [output.name for output in program.outputs]
    found = {name: o.codes.contiguous() for name, o in Reference(program, outputs=names).all(images).items()}
    save_file({"images": images, **found}, PACKED_PROGRAM / "expected.safetensors")


def write_run(model: FloatModel) -> None:
    """The record of a run, with the metrics of one point, and with labels of which four are wrong."""
    images = pixels(32, seed=2)
    labels = model.vit(PREPROCESSING.normalize(images)).argmax(1)
    labels[:4] = (labels[:4] + 1) % SPEC.num_classes
    shipped = load_config_from_yaml("vit_int8.yaml")
    config = {**shipped, "overrides": {"blocks.0.attn_q_out": {"enable_profiler": True}}}
    with TemporaryDirectory() as out:
        result = run(
            model, config, calibration=pixels(64, seed=1), evaluation=(images, labels), out=out, profile_images=8
        )
    RUN.mkdir(exist_ok=True)
    for name, text in run_files(result.record).items():
        (RUN / name).write_text(text)


if __name__ == "__main__":
    main()
