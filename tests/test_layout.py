"""Does the house stand as designed? The folder platform/, and who may import whom."""

import ast
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "isoflop"

# Room -> what it may import of isoflop and models. "models" is the mapping of the zoo, which only
# the commands that offer every model may read; nothing on the platform names a model.

ALLOWED = {
    "run": {"models.interface"},
    "data": {"run"},
    "objectives": {"run", "data", "models.interface"},
    "training": {"run", "data", "objectives", "models.interface"},
    "rollouts": {"run", "data.tokenizers", "models.interface", "models.cache"},
    "scaling": {"run", "models.interface"},
    "tracking": {"run"},
    "orchestration": {
        "run", "data", "training", "rollouts", "tracking", "models", "models.interface",
    },
    "record": {"run", "orchestration.job", "rollouts"},
    "progress": {"orchestration.job", "training"},
    "report": {"scaling", "rollouts"},
    "plan": {
        "run", "objectives", "training", "orchestration.job", "progress", "models.interface",
    },
    "design": {"run"},
    "campaign": {
        "run", "data", "training", "rollouts", "scaling", "tracking", "orchestration", "record",
        "progress", "report", "plan", "design",
    },
    "study": {"run", "design", "campaign"},
    "benchmarks": {
        "run", "data", "objectives", "training", "design", "campaign", "record", "plan",
        "orchestration", "scaling", "models", "models.interface",
    },
    "cli": {"benchmarks", "tracking", "scaling"},
}  # fmt: skip

# Third parties that one room alone may import.
OWNED = {
    "ray": ("orchestration",),
    "optuna": ("orchestration",),
    "mlflow": ("tracking",),
    "tiktoken": ("data",),
    "tokenizers": ("data",),
}


def imports(path: Path) -> list[str]:
    """Every module that a file imports, at the top or inside a function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def room(module: str) -> str:
    return module.removeprefix("isoflop.").split(".")[0]


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(PACKAGE)) for f in FILES])
def test_rooms_import_only_what_the_design_allows(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports(path):
        head = name.split(".")[0]
        if head in OWNED:
            assert own in OWNED[head], f"{path.name} imports {head}, which belongs to {OWNED[head]}"
        if own == "__init__" or head not in ("isoflop", "models"):
            continue
        short = name.removeprefix("isoflop.")
        if name in ("isoflop", "isoflop.__version__") or room(name) == own:
            continue
        allowed = ALLOWED[own]
        assert any(short == a or short.startswith(f"{a}.") for a in allowed), (
            f"{path.relative_to(PACKAGE)} imports {name}; {own} may import {sorted(allowed)}"
        )


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.py")), ids=lambda p: p.name)
def test_models_import_torch_and_themselves(path: Path) -> None:
    allowed = {"torch", "models", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports(path)} <= allowed


def test_every_room_is_in_the_map() -> None:
    rooms = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__"} == set(ALLOWED)


def test_platform_holds_no_python_file() -> None:
    assert not list((ROOT / "platform").glob("*.py"))


def test_platform_is_the_standard_librarys() -> None:
    assert platform.__file__ == str(Path(sysconfig.get_path("stdlib")) / "platform.py")
    code = "import platform; print(platform.__file__); platform.system()"
    for cwd in (ROOT, ROOT / "platform"):
        shown = subprocess.run(
            [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
        )
        assert shown.stdout.strip() == platform.__file__


@pytest.mark.parametrize("module", ["isoflop", "isoflop.cli", "isoflop.scaling.parametric"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    heavy = {"torch", "ray", "mlflow", "optuna"}
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    path = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    shown = subprocess.run(
        [sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
