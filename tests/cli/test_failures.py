"""What the user sees when something is wrong: exit code, message, files left alone. docs/failures.md is the oracle."""

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import vitquant
from support.documents import GOLDEN, documented
from support.tensor_files import load_file
from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.errors import VitquantError
from vitquant.workflows import job


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CONFIG_ERRORS = {
    "syntax": ("weight:\n  bit_type: {bits: 8\nactivation: {}\n", "my.yaml:3:11: bad YAML"),
    "empty": ("", "my.yaml: the file is empty"),
    "typo": ("attn_q_out:\n  observer_typ: KLObserver\n", "my.yaml:2 attn_q_out.observer_typ: unknown key"),
    "top-level typo": ("wieght: {}\n", "my.yaml:1 wieght: unknown layer or section `wieght`, did you mean `weight`"),
    "twice": ("norm:\n  kl_bins: 64\n  kl_bins: 128\n", "given twice, on lines 2 and 3"),
    "text for a number": ("norm:\n  percentile_sigma: 1e-2\n", "write 1.0e-2"),
    "range": ("attn_qkv:\n  weight:\n    bit_type: {bits: 17}\n", "Got 17, expected an integer from 2 to 16"),
    "combination": ("intSoft:\n  softmax: log2\n", "needs an unsigned bit_type"),
    "no match": ("overrides:\n  blocks.12.intSoft: {kl_bins: 64}\n", "`blocks.12.intSoft` matches no point"),
    "tie": (
        "overrides:\n  blocks.*.mlp_fc2.weight: {kl_bins: 64}\n  blocks.0.mlp_fc?.weight: {kl_bins: 128}\n",
        "at blocks.0.mlp_fc2.weight; neither is more specific",
    ),
    "tag": ("weight: !!python/name:os.system\n", "YAML tags are not allowed"),
}


@pytest.mark.parametrize("case", CONFIG_ERRORS)
def test_a_wrong_configuration_stops_the_job(case: str, refused: Callable[..., str], folder: Path) -> None:
    text, message = CONFIG_ERRORS[case]
    (folder / "my.yaml").write_text(text)
    assert message in refused(2, config="my.yaml")


def test_unknown_names_and_sizes(refused: Callable[..., str]) -> None:
    assert documented(refused(2, model="deit_tyni_patch16_224"))
    assert documented(refused(2, img_size="40"))
    assert "nothere.yaml: no such file" in refused(2, config="nothere.yaml")
    assert "nothere.pth: no such checkpoint" in refused(2, weights="nothere.pth")


def test_empty_and_missing_image_folders(refused: Callable[..., str], folder: Path) -> None:
    (folder / "empty").mkdir()
    assert documented(refused(3, calib="empty"))
    assert documented(refused(3, eval="empty"))
    assert "nowhere: no such folder or file" in refused(3, calib="nowhere")


def test_too_many_unreadable_images(refused: Callable[..., str], folder: Path) -> None:
    for name in ("0.png", "1.png"):
        (folder / "photos" / name).write_bytes(b"no picture")
    assert documented(refused(3))


def test_class_folders_of_another_model(refused: Callable[..., str], folder: Path) -> None:
    shutil.rmtree(folder / "photos2" / "owl")
    assert documented(refused(3))


def test_nan_in_the_checkpoint(refused: Callable[..., str], folder: Path, state: Mapping[str, Tensor]) -> None:
    name = "blocks.3.mlp.fc1.weight"
    bad = {**state, name: state[name].clone()}
    bad[name][5, 7] = torch.nan
    save_file(bad, folder / "nan.safetensors")
    assert documented(refused(3, weights="nan.safetensors"))


def test_mismatched_checkpoint(refused: Callable[..., str], folder: Path, state: Mapping[str, Tensor]) -> None:
    some = {name: value for name, value in state.items() if not name.startswith("blocks.11.")}
    save_file(some | {"head.bias": torch.zeros(7), "extra": torch.zeros(1)}, folder / "part.safetensors")
    assert documented(refused(2, weights="part.safetensors"))


def test_the_output_must_be_a_folder(refused: Callable[..., str], folder: Path) -> None:
    (folder / "file").write_text("mine")
    assert refused(3, out="file").startswith("error: file: the output folder is a file")


def test_a_refused_job_makes_no_folder(refused: Callable[..., str], folder: Path) -> None:
    refused(3, calib="nowhere", out="new")
    assert not (folder / "new").exists()


@pytest.mark.filterwarnings("default")
def test_channels_without_range_warn_and_go_on(
    quantize: Callable[..., Any], folder: Path, state: Mapping[str, Tensor]
) -> None:
    flat = dict(state)
    for name in ("blocks.0.norm1.weight", "blocks.0.norm1.bias"):
        flat[name] = state[name].clone()
        flat[name][:2] = 0
    save_file(flat, folder / "flat.safetensors")
    (folder / "my.yaml").write_text("norm: {calibration_mode: channel_wise}\n")
    outcome = quantize(weights="flat.safetensors", config="my.yaml")
    assert outcome.code == 0
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert documented(warnings[0])
    norm1 = {point.name: point for point in vitquant.load("out").points()}["blocks.0.norm1"].params
    assert norm1 is not None
    assert norm1.scale[:2].tolist() == [1, 1]
    assert (norm1.scale[2:] < 1).all()


def test_strict_refuses_what_stays_float(refused: Callable[..., str], run: Callable[..., Any], folder: Path) -> None:
    assert documented(refused(2, "--strict", config="linears_int8.yaml"))
    outcome = run("demo", "--strict", "--config", "attn_config.yaml", "--out", "new")
    assert outcome.code == 2
    assert outcome.error.startswith("error: strict: 52 points stay in floating point, with ")
    assert not (folder / "new").exists()


@pytest.mark.job
@pytest.mark.filterwarnings("default")
def test_outliers_warn_and_go_on(quantize: Callable[..., Any], folder: Path, state: Mapping[str, Tensor]) -> None:
    planted = dict(state)  # channels that are wide at one point, and what undoes it in the weights after it
    for number, norm, linear, factor in ((0, "norm1", "attn.qkv", 100.0), (3, "norm2", "mlp.fc1", 50.0)):
        for name in (f"blocks.{number}.{norm}.weight", f"blocks.{number}.{norm}.bias"):
            planted[name] = state[name].clone()
            planted[name][7] = factor
        name = f"blocks.{number}.{linear}.weight"
        planted[name] = state[name].clone()
        planted[name][:, 7] /= factor
    save_file(planted, folder / "planted.safetensors")
    (folder / "my.yaml").write_text("norm: {calibration_mode: layer_wise}\n")
    outcome = quantize(weights="planted.safetensors", config="my.yaml")
    assert outcome.code == 0
    warnings = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert documented(warnings[0])
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert set(summary["outliers"]) == {"blocks.0.norm1", "blocks.3.norm2"}
    (folder / "my.yaml").write_text("norm: {calibration_mode: channel_wise}\n")  # as the warning says
    outcome = quantize(weights="planted.safetensors", config="my.yaml")
    assert "warning: " not in outcome.err


def refusal(step: Callable[[], object], code: int) -> str:
    with pytest.raises(VitquantError) as caught:
        step()
    assert caught.value.exit_code == code
    return f"error: {caught.value}"


def never_read() -> Iterator[Tensor]:
    raise AssertionError("the refusal comes too late")
    yield


def changed(model: FloatModel, change: Callable[[VisionTransformer], None]) -> FloatModel:
    vit = copy.deepcopy(model.vit)
    with torch.no_grad():
        change(vit)
    return replace(model, vit=vit)


def test_python_reads_the_same_messages(tmp_path: Path) -> None:
    model = vitquant.load_fashion()
    images, _, test_images, _ = vitquant.load_fashion_images()
    out = tmp_path / "out"
    out.mkdir()
    (out / "summary.json").write_text("earlier")
    before = files(out)

    def run(model: FloatModel = model, calibration: Any = images[:8], evaluation: Any = test_images[:2]) -> str:
        config = "vit_int8.yaml"
        step = lambda: job.run(model, config, calibration=calibration, evaluation=evaluation, out=out)  # noqa: E731
        return refusal(step, code=3)

    def overflow(vit: VisionTransformer) -> None:
        vit.blocks[2].mlp.fc1.weight[0] = 3e38  # type: ignore[union-attr, operator]

    not_a_number = torch.zeros(2, 1, 28, 28)
    not_a_number[1, 0, 3, 3] = torch.nan
    assert documented(run(calibration=torch.zeros(2, 3, 28, 28)))
    assert documented(run(calibration=torch.full((2, 1, 28, 28), 100.0)))
    assert documented(run(calibration=not_a_number))
    assert documented(run(model=changed(model, overflow)))
    assert documented(run(evaluation=(test_images[:2], torch.tensor([3, 10]))))
    assert documented(run(evaluation=(image for image in test_images[:2]), calibration=never_read()))
    assert files(out) == before


def test_a_saved_model_with_a_tensor_of_another_kind(folder: Path) -> None:
    shutil.copytree(GOLDEN, "model")
    tensors = load_file("model/model.safetensors")
    name = "blocks.0.attn_qkv.input_scale"
    tensors[name] = tensors[name][None].double()
    save_file(tensors, "model/model.safetensors")
    manifest = json.loads(Path("model/manifest.json").read_text())
    manifest["tensors"]["sha256"] = hashlib.sha256(Path("model/model.safetensors").read_bytes()).hexdigest()
    manifest["tensors"]["bytes"] = len(Path("model/model.safetensors").read_bytes())
    Path("model/manifest.json").write_text(json.dumps(manifest))
    assert documented(refusal(lambda: vitquant.load("model"), code=2))


def test_a_point_without_statistics_has_no_default_scale(tmp_path: Path) -> None:
    qmodel = vitquant.prepare(vitquant.load_fashion(), "vit_int8.yaml")
    _, _, test_images, _ = vitquant.load_fashion_images()
    for step in (
        lambda: qmodel.set_mode(vitquant.Mode.QUANTIZED),
        lambda: vitquant.evaluate(qmodel, test_images[:2]),
        lambda: vitquant.profile(qmodel, test_images[:2]),
        lambda: vitquant.save(qmodel, tmp_path / "out"),
    ):
        assert documented(refusal(step, code=3))
    assert not (tmp_path / "out").exists()
    assert qmodel.mode is vitquant.Mode.FP32
