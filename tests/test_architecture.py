"""Who may import whom, what import loads, and one public path for each object."""

import ast
import dataclasses
import importlib
import inspect
import io
import pathlib
import pkgutil
import subprocess
import sys
import tokenize

import pytest

import lossopt

ROOT = pathlib.Path(lossopt.__file__).parent
BASE = {"_typing", "_checks", "_jax", "_jaxprs", "_paths", "_numerics", "_missing"}
PARTS = {"_pieces", "_keys", "_mean"}
DEVICES = {"_mesh", "_shardings", "_place", "_on_mesh"}
PROCESSES = {"_processes", "_guard"}
CORE = BASE | PARTS | DEVICES | {"_processes", "_objective", "_programs", "_grad"}
MAY_IMPORT = {
    "_typing": set(),
    "_checks": {"_typing", "_numerics"},
    "_jax": {"_typing"},
    "_jaxprs": {"_typing"},
    "_paths": {"_typing"},
    "_numerics": {"_typing"},
    "_processes": {"_jax", "_typing"},
    "_guard": {"_processes"},
    "_glossary_of_losses": set(),
    "_glossary_of_sweeps": set(),
    "_glossary": {"_glossary_of_losses", "_glossary_of_sweeps"},
    "_missing": {"_glossary"},
    "_pieces": BASE,
    "_keys": BASE,
    "_mean": BASE,
    "_objective": BASE | {"_mean"},
    "_hoist": BASE,
    "_programs": BASE | {"_hoist"},
    "_mesh": BASE,
    "_shardings": BASE | {"_mesh"},
    "_place": BASE | PARTS,
    "_on_mesh": BASE | PARTS | {"_mesh", "_shardings", "_place"},
    "_grad": BASE | PARTS | {"_objective", "_programs", "_place"},
    "_culprits": BASE,
    "_elementwise": BASE | {"_culprits", "_mesh"},
    "_audit": CORE,
    "checkpoint": BASE | {"_processes"},
    "fused": CORE | {"losses"},
    "losses": BASE,
    "parallel": CORE | PROCESSES | {"_elementwise", "training"},
    "plots": CORE | {"losses", "regularizers", "sweeps", "training"},
    "regularizers": BASE,
    "schedules": BASE,
    "sweeps": CORE | {"checkpoint", "parallel", "training"},
    "testing": CORE | {"_audit"},
    "transforms": BASE | {"regularizers"},
    "training": CORE | PROCESSES | {"_audit", "_elementwise", "checkpoint"},
}
DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef
SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
HEAVY = {
    "chex",
    "flax",
    "orbax",
    "tensorstore",
    "rich",
    "matplotlib",
    "scipy",
    "sklearn",
    "pandas",
    "torch",
}


def _rooms():
    return {module.name for module in pkgutil.iter_modules([str(ROOT)])}


def _files(room):
    return [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else (ROOT / room).rglob("*.py")


def _imports(room):
    for node in (n for path in _files(room) for n in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room} imports relatively"
            package, *rest = node.module.split(".")
            if package == "lossopt":
                yield from rest[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "lossopt" for alias in node.names), room


def _public(module):
    return {
        name: thing
        for name, thing in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(thing)
    }


def _public_modules():
    names = sorted(room for room in _rooms() if not room.startswith("_"))
    return [lossopt, *(importlib.import_module(f"lossopt.{name}") for name in names)]


def test_every_room_has_a_row():
    assert _rooms() == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_imports_only_from_below(room):
    assert set(_imports(room)) - {room} <= MAY_IMPORT[room]


def test_every_object_has_one_public_path():
    paths = {}
    for module in _public_modules():
        for name, thing in _public(module).items():
            paths.setdefault(id(thing), []).append(f"{module.__name__}.{name}")
    assert [places for places in paths.values() if len(places) > 1] == []


@pytest.mark.parametrize("module", _public_modules(), ids=lambda module: module.__name__)
def test_an_init_holds_a_docstring_and_reexports_and_the_message_of_what_is_missing(module):
    docstring, *imports, missing = ast.parse(inspect.getsource(module)).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    for node in imports:
        assert isinstance(node, ast.ImportFrom)
        assert all(alias.asname == alias.name for alias in node.names)
    assert ast.unparse(missing) == "__getattr__ = _missing.Missing(__name__)"
    assert not inspect.isfunction(module.__getattr__)  # type checkers would miss no name any more


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.name)
def test_dataclasses_are_frozen(path):
    module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for kind in filter(dataclasses.is_dataclass, vars(importlib.import_module(module)).values()):
        assert not inspect.isclass(kind) or kind.__dataclass_params__.frozen


def test_import_loads_nothing_heavy():
    code = "import sys, lossopt; print(*{name.split('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(out.stdout.split())
    assert {"jax", "optax", "numpy"} <= loaded
    assert not HEAVY & loaded


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: p.name)
def test_modules_and_functions_are_short(path):
    text = path.read_text()
    code = _code(text)
    assert len(code) <= 170
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = code & set(range(node.body[0].lineno, node.end_lineno + 1))
            assert len(body) <= 40, node.name


def _code(text):
    """The numbers of the lines that hold more than docstrings, comments and blanks."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def test_nothing_depends_on_assertions():
    """`python -O` turns them off."""
    for path in ROOT.rglob("*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        assert not any(isinstance(node, ast.Assert) for node in tree), path


COUNTED = {  # lines of a module, and whether each counts
    "'''A module,": False,
    "of two lines.'''": False,
    "# a comment": False,
    "x = (  # and another": True,
    "": False,
    "    1)": True,
    "def f(y):": True,
    "    '''A docstring.'''": False,
    "    return '''a text": True,
    "    of two lines'''": True,
}


def test_code_is_counted_without_docstrings_comments_and_blanks():
    wanted = {number for number, counts in enumerate(COUNTED.values(), 1) if counts}
    assert _code("\n".join(COUNTED)) == wanted
