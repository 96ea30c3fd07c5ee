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
    "text": set(),
    "captures": {"text"},
    "targets": {"text", "models.interface"},
    "run": {"text", "captures", "targets", "models.interface"},
    "data": {"run"},
    "objectives": {"run", "targets", "data", "models.interface"},
    "exchange": {"run", "data", "models", "models.interface"},
    "sample": {"exchange", "rollouts"},
    "train": {"run", "targets", "design", "study", "models"},
    "reward": {"run", "captures", "exchange", "rollouts", "training", "data"},
    "score": {"exchange", "objectives", "targets", "data", "training"},
    "training": {"run", "targets", "data", "objectives", "models.interface"},
    "rollouts": {
        "run", "captures", "targets", "data.tokenizers", "models.interface", "models.cache",
    },
    "scaling": {"run", "models.interface"},
    "patience": set(),
    "tracking": {"run", "patience"},
    "tracked": {"tracking"},
    "orchestration": {
        "run", "space", "data", "training", "rollouts", "tracking", "models", "models.interface",
    },
    "record": {"run", "data", "orchestration.job", "rollouts"},
    "progress": {"orchestration.job", "training"},
    "report": {"scaling", "rollouts", "space"},
    "plan": {
        "run", "data.rows", "objectives", "training", "orchestration.job",
        "orchestration.staffing", "progress", "models.interface",
    },
    "preregister": {"orchestration.job", "orchestration.staffing", "plan", "record", "scaling",
                    "campaign", "design", "report.analysis"},
    "planning": {
        "run", "targets", "data.rows", "data.tokenizers", "objectives", "training", "plan",
        "design", "scaling",
        "models", "models.interface",
    },
    "space": set(),
    "design": {"run", "space"},
    "campaign": {
        "run", "data", "training", "rollouts", "scaling", "tracking", "orchestration", "record",
        "progress", "report", "plan", "design", "preregister", "watching", "searching", "trunks",
        "execution", "telling",
    },
    "execution": {
        "design", "campaign", "preregister", "telling", "trunks", "orchestration", "progress",
        "watching", "searching", "plan", "report",
    },
    "telling": {"design", "campaign", "record", "tracking", "orchestration", "progress",
                "training"},
    "throughput": {"design", "campaign", "data", "training", "orchestration.job", "scaling.plots"},
    "trunks": {"orchestration", "training"},
    "searching": {
        "run", "space", "design", "campaign", "record", "plan", "progress", "orchestration",
        "rollouts", "training", "upcoming",
    },
    "watching": {"design", "orchestration", "training", "progress"},
    "upcoming": {
        "run", "design", "campaign", "record", "orchestration.job", "scaling", "plan",
        "report.analysis",
    },
    "study": {
        "run", "space", "design", "campaign", "plan", "upcoming", "watching", "training.means",
    },
    "benchmarks": {
        "run", "targets", "data", "objectives", "training", "design", "campaign", "record", "plan",
        "orchestration", "rollouts", "scaling", "exchange", "tracking", "models",
        "models.interface", "models.llama",
    },
    "cli": {
        "benchmarks", "tracking", "scaling", "report", "planning", "data", "orchestration", "run",
        "models", "sample", "score", "reward", "train", "rollouts.report",
        "tracked",
    },
}  # fmt: skip

# Third parties that one room alone may import.
OWNED = {
    "ray": ("orchestration", "benchmarks"),  # bare, as a peer
    "optuna": ("orchestration",),
    "mlflow": ("tracking", "tracked"),
    "tiktoken": ("data",),
    "tokenizers": ("data", "benchmarks"),  # as a peer
    "sentencepiece": ("data",),
    "huggingface_hub": ("data",),
    "fsspec": ("data", "orchestration"),
    "psutil": ("orchestration",),
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


# The cluster knows nothing of isoflop: it rents nodes. These of its modules speak to Ray.
RAY_IN_CLUSTER = {"ssh", "nodes", "static", "provider", "launch", "watch", "jobs", "connectivity"}
CLUSTER = sorted((ROOT / "cluster").rglob("*.py"))


@pytest.mark.parametrize("path", CLUSTER, ids=[str(f.relative_to(ROOT)) for f in CLUSTER])
def test_the_cluster_imports_itself_and_ray_only_where_it_is_asked_for(path: Path) -> None:
    heads = {name.split(".")[0] for name in imports(path)}
    assert not heads & {"isoflop", "models", "optuna", "mlflow"}
    assert "ray" not in heads or path.stem in RAY_IN_CLUSTER


@pytest.mark.parametrize("path", CLUSTER, ids=[str(f.relative_to(ROOT)) for f in CLUSTER])
def test_every_module_of_the_cluster_is_in_its_map(path: Path) -> None:
    text = (path.parent / "__init__.py").read_text()
    assert path.stem == "__init__" or f"\n{path.stem} " in text


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.py")), ids=lambda p: p.name)
def test_models_import_torch_and_themselves(path: Path) -> None:
    allowed = {"torch", "models", *sys.stdlib_module_names}
    if path.name == "attention.py":
        allowed.add("flash_attn")  # the optional backend
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


@pytest.mark.parametrize(
    "module",
    [
        "isoflop",
        "isoflop.cli",
        "isoflop.data.prepare",
        "isoflop.scaling.parametric",
        "cluster.command",
        "cluster.prime.api",
    ],
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    heavy = {"torch", "ray", "mlflow", "optuna"}
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    path = {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    shown = subprocess.run(
        [sys.executable, "-c", code], env=path, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"
