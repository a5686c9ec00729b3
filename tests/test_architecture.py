"""The house keeps its walls: what may import what, and what starts light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ssclf

PACKAGE = Path(ssclf.__file__).parent
#: Each layer may import those behind it, never one before it.
LAYERS = [
    "cli",
    "cluster",
    "service",
    "workflows",
    "learning",
    "reporting",
    "io",
    "domain",
    "config",
    "errors",
]
SIDE_BY_SIDE = {("learning", "reporting"), ("reporting", "learning")}
#: Rooms of one command each, which only the command line knows.
ROOMS_OF_COMMANDS = ("cluster", "service")
HEAVY = {
    "torch", "torchvision", "torchio", "lightning_fabric", "onnx", "onnxscript", "scipy", "sklearn", "SimpleITK",
    "matplotlib", "pandas", "deepbet", "tensorboard", "mlflow", "wandb",
}  # fmt: skip


def imports(path: Path, *, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    for_types = {id(n) for block in tree.body if _is_for_types(block) for n in ast.walk(block)}
    nodes = [n for n in (tree.body if top_only else ast.walk(tree)) if id(n) not in for_types]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _is_for_types(node: ast.stmt) -> bool:
    """`if TYPE_CHECKING:`, which no run imports."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def layer(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "ssclf" and len(parts) > 1 and parts[1] in LAYERS else None


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name not in ("__init__.py", "__main__.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in imports(path):
        other = layer(name)
        if other and (own, other) not in SIDE_BY_SIDE:
            assert LAYERS.index(other) >= LAYERS.index(own), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_what_prediction_needs_imports_nothing_heavy(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    training = {"train.py", "export.py", "demo.py", "cross_validate.py", "evaluate.py"}
    pictures = {"figures.py", "cv_report.py"}
    if parts[0] == "learning" or (parts[0] == "workflows" and path.name in training) or path.name in pictures:
        pytest.skip("only used where training is installed")
    heavy = {name.split(".")[0] for name in imports(path, top_only=True)} & HEAVY
    assert not heavy


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_prediction_on_a_cluster_needs_a_cluster(path: Path) -> None:
    cluster = {"ray", "pyarrow", "fsspec", "s3fs"}
    needed = {name.split(".")[0] for name in imports(path)} & cluster
    through = {name for name in imports(path, top_only=True) if name.startswith("ssclf.cluster.")}
    assert path.relative_to(PACKAGE).parts[0] == "cluster" or not (needed or through)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_two_rooms_speak_to_peers(path: Path) -> None:
    """The service, and what fetches a series that the user named from a server."""
    speakers = {"pynetdicom", "dicomweb_client", "requests"}
    place = path.relative_to(PACKAGE)
    if place.parts[0] != "service" and place != Path("io", "volumes", "dicomweb.py"):
        assert not {name.split(".")[0] for name in imports(path)} & speakers


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_command_line_knows_rooms_of_commands(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0]
    for room in ROOMS_OF_COMMANDS:
        if own not in ("cli", room):
            assert not {name for name in imports(path) if name.startswith(f"ssclf.{room}")}


def calls(path: Path) -> set[str]:
    """What a module calls as `owner.name`, with the number of its arguments, "*" where they are named."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else "_"
            found.add(f"{owner}.{node.func.attr}/{'*' if node.keywords else len(node.args)}")
    return found


#: Modules that are the only ones to do something, so that it is done in one way.
ONLY = {"locks": "io/locks.py", "files": "io/files.py", "tables": "io/records/tables.py"}
MOVERS = {"os.rename", "os.renames", "os.replace", "os.link", "shutil.move"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_locks_renames_and_tables_have_one_home(path: Path) -> None:
    """flock stood in five modules, write-beside-then-rename in eight, a CSV writer in five."""
    own = path.relative_to(PACKAGE).as_posix()
    called = {name.partition("/")[0] for name in calls(path)} | imports(path)
    # a path's `replace` takes one argument, a text's takes two
    renames = {name for name in calls(path) if name.endswith((".replace/1", ".rename/1", ".rename/*"))}
    assert own == ONLY["locks"] or not {"fcntl", "msvcrt"} & imports(path)
    assert own == ONLY["files"] or not renames | (MOVERS & called)
    assert own == ONLY["tables"] or not {"csv.writer", "csv.DictWriter"} & called


def test_what_has_one_home_is_there() -> None:
    """The test above looks for the right names: it finds them where they should be."""
    assert "fcntl" in imports(PACKAGE / ONLY["locks"])
    assert "partial.replace/1" in calls(PACKAGE / ONLY["files"])
    assert "csv.writer/*" in calls(PACKAGE / ONLY["tables"])


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_function_fits_a_screen(path: Path) -> None:
    long = [
        f"{node.name}: {length} lines"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (length := (node.end_lineno or 0) - node.lineno + 1) > 60
    ]
    assert not long


#: They raise for a name that is too long, or that lies where nobody may look; `ssclf.io.paths` answers instead.
ASKED = {
    "exists",
    "is_file",
    "is_dir",
    "is_symlink",
    "is_mount",
    "stat",
    "lstat",
    "resolve",
    "samefile",
    "realpath",
}


@pytest.mark.parametrize("room", ["io/discovery", "io/volumes"])
def test_what_a_users_name_leads_to_is_asked_in_one_way(room: str) -> None:
    """A folder that could be listed and not searched, and a path of 4,100 characters, ended the run."""
    asked = {
        f"{path.name}: {name}"
        for path in (PACKAGE / room).glob("*.py")
        for name in calls(path)
        if name.partition("/")[0].rpartition(".")[2] in ASKED
    }
    assert not asked


def test_paths_is_where_it_is_asked() -> None:
    asked = {name.partition("/")[0].rpartition(".")[2] for name in calls(PACKAGE / "io" / "paths.py")}
    assert asked >= {"stat", "lstat", "is_symlink", "is_dir", "is_file", "realpath"}


def test_init_files_are_bare() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE:
            assert path.read_text("utf-8").strip() == ""


@pytest.mark.parametrize("command", [["--help"], ["predict", "--help"], ["train", "--help"], ["--version"]])
def test_help_imports_no_engine(command: list[str]) -> None:
    code = (
        "import sys\nfrom ssclf.cli.app import app\n"
        f"try:\n    app({command!r})\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'onnxruntime', 'nibabel', 'numpy', 'pydicom'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
