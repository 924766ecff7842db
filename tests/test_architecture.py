"""Who imports whom: the table of docs/architecture.md against the sources. How the tests are ordered."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vitquant
from support.documents import ROOT

PACKAGE = ROOT / "src" / "vitquant"
SHARED = {"fuzz", "golden", "support"}
"""Folders of the tests that belong to no part."""
ACROSS = {f"test_{name}" for name in ("api_battery", "architecture", "docs", "embed_to_attn", "quant_attn", "scripts")}
"""Tests that stand across the parts."""


def part_of(path: Path) -> str:
    """``layers/point.py`` and ``runs.py`` belong to the parts ``layers`` and ``runs``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> Iterator[str]:
    """Our parts that a file imports, wherever in the file that stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            modules = [node.module or ""]
            if node.module == "vitquant":
                modules = [f"vitquant.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        yield from (module.split(".")[1] for module in modules if module.startswith("vitquant."))


def allowed_imports() -> dict[str, set[str]]:
    """The table under "Who may import whom"."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("## Who may import whom")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|(.*)\|$", section, flags=re.MULTILINE)
    return {part: set(re.findall(r"`(\w+)`", told)) for parts, told in rows for part in re.findall(r"`(\w+)`", parts)}


DOORS = (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path not in DOORS)
ALLOWED = allowed_imports()


def runtime_imports(path: Path) -> set[str]:
    """Top-level modules that a file imports when it runs, so not what only a type checker reads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    branches = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    unread = {node for branch in branches for statement in branch.body for node in ast.walk(statement)}
    nodes = [node for node in ast.walk(tree) if node not in unread]
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {module.partition(".")[0] for module in modules}


def test_what_is_imported_is_a_declared_dependency() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    required, extras = (
        {{"pillow": "PIL", "pyyaml": "yaml"}.get(name, name) for name in re.findall(r'"([\w-]+)', part)}
        for part in (
            text.partition("\ndependencies = [")[2].partition("]")[0],
            text.partition("\n[project.optional-dependencies]")[2].partition("\n[")[0],
        )
    )
    imported = set().union(*(runtime_imports(path) for path in SOURCES)) - sys.stdlib_module_names - {"vitquant"}
    assert imported - extras == required


def packages_of(extra: str) -> set[str]:
    """What an extra brings beyond the dependencies, by the names of the modules."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(rf"^{extra} = \[(.*)\]$", text, flags=re.MULTILINE)
    assert listed is not None
    return set(re.findall(r'"([\w-]+)', listed[1]))


def foreign_imports(paths: Iterable[Path]) -> set[str]:
    """Modules that belong neither to Python nor to vitquant's own dependencies, nor stand beside the files."""
    own = {"vitquant", "vitquant_runtime", "benchmarks", "support", *(path.stem for path in ROOT.glob("tests/**/*.py"))}
    required = {"numpy", "PIL", "pydantic", "yaml", "rich", "safetensors", "torch"}
    return set().union(*(runtime_imports(path) for path in paths)) - sys.stdlib_module_names - own - required


def test_the_extras_bring_what_benchmarks_and_tests_import() -> None:
    """The Makefile installs timm, without its dependencies, and the native executor, which is no extra."""
    benchmarks = sorted((ROOT / "benchmarks").glob("*.py"))
    assert {"nncf", "onnx", "openvino"} <= foreign_imports(benchmarks) <= packages_of("bench") | packages_of("timm")
    if any("torch.onnx.export(" in path.read_text(encoding="utf-8") for path in benchmarks):
        assert "onnxscript" in packages_of("bench")  # which torch imports when it exports
    tests = foreign_imports((ROOT / "tests").rglob("*.py")) - {"torchvision"}  # which comes with timm
    assert tests <= packages_of("test") | packages_of("timm")


def versions(file: str, pattern: str) -> dict[str, str]:
    """Packages and their versions, without zeros at the end."""
    found = re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"))
    return {name: re.sub(r"(\.0)+$", "", version) for name, version in found}


def test_the_lowest_versions_that_are_tested_are_those_that_are_promised() -> None:
    promised = versions("pyproject.toml", r'"([\w-]+)>=([\d.]+)"')
    lowest = versions("constraints-lowest.txt", r"([\w-]+)==([\d.]+)")
    assert {"numpy", "pillow", "pydantic", "pyyaml", "rich", "safetensors", "torch", "onnx", "onnxruntime"} < {*lowest}
    del lowest["torch"]  # constraints-lowest.txt tells why
    assert lowest.items() <= promised.items()


def test_tests_mirror_the_sources() -> None:
    tests = ROOT / "tests"
    folders = {path.parent.relative_to(tests) for path in tests.rglob("*.py")}
    assert {folder for folder in folders if not (PACKAGE / folder).is_dir()} == {Path(name) for name in SHARED}
    alone = {path.stem for path in tests.glob("test_*.py")}
    assert alone - {f"test_{path.stem}" for path in PACKAGE.glob("*.py")} == ACROSS


def test_what_skips_without_an_optional_package_is_marked() -> None:
    """What imports one fails among the fast tests; what skips instead would not be noticed."""
    markers = {"timm": "timm", "torchvision": "timm", "vitquant_runtime": "native"}
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        for package in re.findall(rf'importorskip\("({"|".join(markers)})\b', text):
            assert f"\npytestmark = pytest.mark.{markers[package]}\n" in text, path


def test_every_part_is_in_the_table() -> None:
    assert {part_of(path) for path in SOURCES} == set(ALLOWED)


def test_imports_keep_to_the_table() -> None:
    stray = {
        f"{path.relative_to(PACKAGE)} imports {part}"
        for path in SOURCES
        for part in imported_parts(path)
        if part not in {*ALLOWED[part_of(path)], part_of(path)}
    }
    assert not stray


def test_there_are_no_circles() -> None:
    order = tuple(TopologicalSorter(ALLOWED).static_order())  # raises CycleError
    assert order[-1] == "cli"
    assert not any("cli" in told for told in ALLOWED.values())


def test_an_import_that_breaks_the_rules_is_found(tmp_path: Path) -> None:
    """The reader sees imports in functions, of submodules, and from the root."""
    file = tmp_path / "a.py"
    file.write_text("import torch\ndef f():\n    from vitquant.cli.main import main\nfrom vitquant import workflows\n")
    assert sorted(imported_parts(file)) == ["cli", "workflows"]


def test_the_package_exports_what_it_says() -> None:
    homes = {part.split(".")[1] for part in vitquant._HOMES}
    assert "cli" not in homes
    for name in vitquant.__all__:
        assert getattr(vitquant, name) is not None
    assert set(vitquant.__all__) == {*vitquant._HOME, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        vitquant.quantise  # noqa: B018


@pytest.mark.parametrize(
    "module", ["vitquant", "vitquant.config", "vitquant.errors", "vitquant.cli.main", "vitquant.report.files"]
)
def test_torch_is_not_imported_before_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["quantize", "--help"],
        ["check", "--help"],
        ["config", "show", "vit_int8.yaml"],
        ["show", str(ROOT / "tests/golden/run_record")],
    ],
)
def test_commands_without_numbers_need_no_torch(argv: list[str]) -> None:
    code = (
        "import sys\nfrom vitquant.cli.main import main\n"
        f"try:\n    code = main({argv!r})\nexcept SystemExit as stop:\n    code = stop.code\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
