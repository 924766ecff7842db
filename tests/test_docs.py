"""The documents are true: examples run, commands parse, files resolve, messages and tables are the program's own."""

import doctest
import importlib
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from support.documents import ROOT
from vitquant.cli.main import build_parser, main
from vitquant.config import LAYERS, ModelConfig, QuantConfig, point_names, shipped_names
from vitquant.config.repair import REPAIR_SETTINGS

DOCUMENTS = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
README, CONFIGURATION = ROOT / "README.md", ROOT / "docs" / "configuration.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def blocks(path: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


def commands(program: str) -> list[list[str]]:
    """The arguments of each call of a program in the documents' console blocks."""
    text = "".join(block for path in DOCUMENTS for block in blocks(path, "console"))
    lines = text.replace("\\\n", "").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words and words[0] == program]


def modules_with_examples() -> list[str]:
    source = ROOT / "src"
    found = [path for path in sorted(source.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__") for path in found]


def failures() -> list[tuple[str, str]]:
    """Files and the messages that docs/failures.md gives for them."""
    found = FENCE.findall((ROOT / "docs" / "failures.md").read_text(encoding="utf-8"))
    pairs = itertools.pairwise(found)
    return [(file, message) for (first, file), (second, message) in pairs if (first, second) == ("yaml", "text")]


@pytest.mark.job
def test_python_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("out", "out_old"):
        shutil.copytree(ROOT / "tests" / "golden" / "run_record", folder)
    names: dict[str, object] = {}
    examples = blocks(README, "python")
    assert len(examples) >= 5
    for number, example in enumerate(examples):
        exec(compile(example, f"README.md, Python example {number + 1}", "exec"), names)


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples_in_docstrings_run(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("argv", commands("vitquant"), ids=" ".join)
def test_commands_parse(argv: list[str]) -> None:
    assert callable(build_parser().parse_args(argv).run)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {argv[0] for argv in commands("make")}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("path", [README, CONFIGURATION], ids=lambda path: path.name)
def test_files_resolve(path: Path) -> None:
    examples = blocks(path, "yaml")
    assert examples
    for example in examples:
        resolved = ModelConfig.from_text(example, path.name).resolve(point_names(12))
        assert any(config is not None for config in resolved.values())


@pytest.mark.parametrize(("file", "message"), failures())
def test_configuration_failures_read_as_documented(
    file: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(file)
    assert main(["config", "show", "my.yaml"]) == 2
    assert capsys.readouterr().err == message


def test_the_table_of_settings_is_complete() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \|", CONFIGURATION.read_text(encoding="utf-8"), flags=re.MULTILINE)
    defaults = QuantConfig().model_dump()
    bits = defaults.pop("bit_type")
    expected = {f"bit_type.{key}": value for key, value in bits.items()} | defaults
    assert dict(rows) == {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in expected.items()
    }


def test_the_table_of_repair_steps_is_complete() -> None:
    table = CONFIGURATION.read_text(encoding="utf-8").partition("| step | settings |")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|", table, flags=re.MULTILINE))
    assert list(rows) == list(REPAIR_SETTINGS)
    for name, settings in REPAIR_SETTINGS.items():
        for field, default in settings().model_dump(mode="json").items():
            assert f"`{field}`, default {default}" in rows[name]


def test_the_table_of_layers_is_complete() -> None:
    table = CONFIGURATION.read_text(encoding="utf-8").partition("| part | layers,")[2].partition("\n\n")[0]
    known = {layer.name for layer in LAYERS.values()}
    assert [name for name in re.findall(r"`(\w+)`", table) if name in known] == [
        layer.name for layer in LAYERS.values()
    ]


def test_shipped_files_are_described() -> None:
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in shipped_names())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).is_file(), target
