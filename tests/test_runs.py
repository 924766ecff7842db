"""Files that name their run, and folders whose files are of several."""

import json
import shutil
from pathlib import Path

import pytest

import vitquant
from vitquant.architectures.model import QuantModel
from vitquant.artifact.storage import run_id
from vitquant.errors import ArtifactError
from vitquant.measure.compare import compare
from vitquant.report.points import points_csv
from vitquant.runs import READERS, require_one_run, run_named_by
from vitquant.workflows.record import point_record

FILES = ("manifest.json", "model.safetensors", "program.json", "program.safetensors", "summary.json", "points.csv")


@pytest.fixture(scope="module")
def models() -> list[QuantModel]:
    """The embedded model, calibrated twice on different images."""
    images = vitquant.load_fashion_images()[0]
    parts = images[:8], images[8:16]
    return [vitquant.quantize(vitquant.load_fashion(), "vit_int8.yaml", calibration=part) for part in parts]


def write(model: QuantModel, folder: Path) -> Path:
    """What names the run in a results folder."""
    vitquant.save(model, folder)
    vitquant.save_program(vitquant.compile(model), folder)
    (folder / "summary.json").write_text(json.dumps({"run": run_id(model)}))
    images = vitquant.load_fashion_images()[2]
    (folder / "points.csv").write_text(
        points_csv(map(point_record, vitquant.profile(model, images[:1]).points), run_id(model))
    )
    return folder


@pytest.fixture(scope="module")
def runs(models: list[QuantModel], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [write(model, tmp_path_factory.mktemp("run")) for model in models]


def test_all_files_name_the_run(models: list[QuantModel], runs: list[Path]) -> None:
    first, second = (run_id(model) for model in models)
    assert first != second
    assert {run_named_by(runs[0] / name) for name in READERS} == {first}
    assert {run_named_by(runs[1] / name) for name in READERS} == {second}
    for folder in runs:
        require_one_run(folder)


def test_the_name_stays_with_the_model(models: list[QuantModel], runs: list[Path], tmp_path: Path) -> None:
    loaded = vitquant.load(runs[0])
    assert run_id(loaded) == run_id(models[0])
    assert vitquant.compile(loaded).metadata["run"] == run_id(models[0])
    vitquant.save(loaded, tmp_path)
    assert run_named_by(tmp_path / "manifest.json") == run_id(models[0])


@pytest.mark.parametrize("foreign", FILES)
def test_one_file_of_another_run_is_refused_by_every_reader(foreign: str, runs: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(runs[0], folder)
    shutil.copy(runs[1] / foreign, folder / foreign)
    images = vitquant.load_fashion_images()[2]
    for read in (
        vitquant.load,
        vitquant.load_program,
        lambda path: compare(path, vitquant.load_fashion(), images[:1]),
    ):
        if foreign.endswith(".safetensors"):  # these are held by the digest in the file beside them
            continue
        with pytest.raises(ArtifactError, match="the files in this folder are from different runs") as caught:
            read(folder)
        assert f"{foreign} from run {run_named_by(runs[1] / foreign)}" in str(caught.value)


def test_files_without_a_run_and_files_of_others_are_no_mixture(runs: list[Path], tmp_path: Path) -> None:
    """A folder of an earlier version, and a user's own files of such names."""
    folder = tmp_path / "out"
    shutil.copytree(runs[0], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["run"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for text in ('{"epochs": 3}', "no JSON", "[" * 100_000, '{"run": 7}'):
        (folder / "summary.json").write_text(text)
        (folder / "points.csv").write_text("x,y\n1,2\n")
        vitquant.load(folder)
        vitquant.load_program(folder)
    (folder / "summary.json").unlink()
    (folder / "points.csv").write_bytes(b"")
    require_one_run(folder)
