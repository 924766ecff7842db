"""``vitquant config``, and what all commands share."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitquant
from vitquant.cli.main import main
from vitquant.config import json_schema, point_names

GLOBAL = """\
weight: {calibration_mode: channel_wise, bit_type: {bits: 4}}
outputs: {output_quant_enable: false}
activation: {observer_type: PercentileObserver, percentile_alpha: 0.999}
"""


def test_show_as_json_is_the_resolved_table(run: Callable[..., Any]) -> None:
    told = json.loads(run("config", "show", "attn_config.yaml", "--depth", "2", "--json").out)
    resolved = vitquant.ModelConfig.from_yaml("attn_config.yaml").resolve(point_names(2))
    assert told == {name: config and config.model_dump() for name, config in resolved.items()}
    assert told["blocks.1.attn_q_out"]["bit_type"] == {"bits": 8, "signed": True}
    assert told["pos_embed"] is None


def test_show_prints_a_line_a_layer(run: Callable[..., Any]) -> None:
    outcome = run("config", "show", "vit_int8.yaml", "--depth", "3")
    assert outcome.code == 0
    for text in ("blocks.0-2.intSoft", "row, table", "defaults.weight:", "final_norm"):
        assert text in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 120


def test_show_lists_the_points_of_a_model(run: Callable[..., Any]) -> None:
    def names(*argv: str) -> list[str]:
        return run("config", "show", "vit_int8.yaml", "--names", *argv).out.splitlines()  # type: ignore[no-any-return]

    assert names("--depth", "1") == list(point_names(1))
    distilled = names("--model", "deit_tiny_distilled_patch16_224")
    assert distilled == list(point_names(12, distilled=True))
    assert "head.weight" not in names("--model", "vit_small_patch14_dinov2")


def test_schema(run: Callable[..., Any]) -> None:
    assert json.loads(run("config", "schema").out) == json_schema()


def test_migrate_writes_the_same_model(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("global.yaml").write_text(GLOBAL)
    printed = run("config", "migrate", "global.yaml")
    written = run("config", "migrate", "global.yaml", "--out", "layers.yaml")
    assert (written.code, written.out, written.err) == (0, "", "wrote layers.yaml\n")
    assert printed.out == Path("layers.yaml").read_text()
    old, new = (vitquant.ModelConfig.from_yaml(name).resolve(point_names(3)) for name in ("global.yaml", "layers.yaml"))
    assert old == new

    again = run("config", "migrate", "layers.yaml", "--out", "again.yaml")
    assert again.code == 2
    assert "only a file in the global format can be migrated" in again.err
    assert not Path("again.yaml").exists()


def test_an_unwritable_place_is_an_error_of_the_environment(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("global.yaml").write_text(GLOBAL)
    outcome = run("config", "migrate", "global.yaml", "--out", "global.yaml/a.yaml")
    assert outcome.code == 4
    assert "global.yaml/" in outcome.err
    assert outcome.err.endswith("Not a directory.\n")
    assert Path("global.yaml").read_text() == GLOBAL


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "COMMAND"),
        (["quantise"], "invalid choice: 'quantise'"),
        (["demo", "--batch-size", "0"], "0 is less than 1"),
        (["quantize", "--model", "deit_tiny_patch16_224"], "--weights, --calib, --eval"),
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"vitquant {vitquant.__version__}\n"


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "vitquant", "check", "no_such_file.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no_such_file.yaml" in done.stderr


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "vitquant", "config", "schema"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141
