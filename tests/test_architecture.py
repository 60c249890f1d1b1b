"""Rules about the source itself, read from its syntax trees."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from docstring_parser import Docstring, DocstringStyle, parse

import expunge
from expunge.cli import results

SOURCE = Path(expunge.__file__).parent
FILES = {
    ".".join(p.relative_to(SOURCE).with_suffix("").parts): p for p in sorted(SOURCE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
# From the bottom to the top: a module imports only what stands before it, or its own package.
LAYERS = [
    {"errors"},
    {"_core"},
    {"config"},
    {"records"},
    {"storage"},
    {"data"},
    {"models"},
    {"reporting", "training"},
    {"detection"},
    {"pruning"},
    {"editing"},
    {"recipes"},
    {"evaluation"},
    {"review"},
    {"stages"},
    {"tracking"},
    {"repair_context"},
    {"repair_review"},
    {"results"},
    {"model_free"},
    {"detection_run", "sklearn"},
    {"pipeline", "saved_run"},
    {"specs", "integrations"},
    {"spec_check"},
    {"export"},
    {"text", "nmtune", "robustness", "selfsupervised"},
    {"demo"},
    {"scaffold"},
    {"cli"},
    {"__main__", "__init__"},
]
NEIGHBOURS = {"text", "nmtune", "robustness", "selfsupervised"}
# Modules that touch neither disk nor terminal.
PURE = {
    name
    for name in FILES
    if name.split(".")[0] in {"config", "records", "recipes", "detection", "evaluation"}
    or name.split(".")[0] in {"editing", "pruning", "reporting", "training"}
}
IMPURE_IMPORTS = {"os", "shutil", "tempfile", "subprocess", "sys", "rich", "typer", "filelock"}
IMPURE_CALLS = {"open", "print", "write", "write_text", "write_bytes", "mkdir", "unlink", "echo"}
# What `import expunge` and `expunge --help` may not load.
HEAVY = {
    *("torch", "accelerate", "sklearn", "scipy", "pyarrow", "torch_pruning", "transformers"),
    *(
        "starlette",
        "uvicorn",
        "jinja2",
        "PIL",
        "onnx",
        "onnxruntime",
        "safetensors",
        "captum",
        "cleanlab",
        "art",
    ),
}


def top(module: str) -> str:
    return module.split(".")[0]


def imported(name: str, *, runtime: bool = True) -> set[str]:
    """Modules of this package that a module imports; those only for types are left aside."""
    found: set[str] = set()
    for node in _outside_type_checking(TREES[name]) if runtime else ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "expunge":
            rest = (node.module or "").split(".")[1:]
            names = [rest] if rest else [[alias.name] for alias in node.names]
            for path in names:
                direct = [".".join([*path, alias.name]) for alias in node.names]
                found |= {d for d in direct if d in FILES} or {".".join(path)}
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if top(a.name) == "expunge"}
    return found


def _outside_type_checking(tree: ast.Module) -> list[ast.AST]:
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= {id(inner) for part in node.body for inner in ast.walk(part)}
    return [node for node in ast.walk(tree) if id(node) not in skipped]


def calls(name: str) -> list[tuple[str, int]]:
    """Every call's full name and line."""
    return [
        (ast.unparse(node.func), node.lineno)
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call)
    ]


def test_every_module_has_its_place_in_the_order():
    places = [name for layer in LAYERS for name in layer]
    assert len(places) == len(set(places))
    assert {top(name) for name in FILES} == set(places)


def test_imports_only_go_downwards():
    level = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    wrong = [
        f"{name} imports {other}"
        for name in FILES
        for other in imported(name)
        if top(other) != top(name) and level[top(other)] > level[top(name)]
    ]
    assert wrong == []


def test_imports_have_no_circle():
    edges = {name: imported(name) for name in FILES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' → '.join([*path, name])}"
        if name not in done:
            for other in edges.get(name, set()) | edges.get(f"{name}.__init__", set()):
                if other != name:
                    visit(other, (*path, name))
            done.add(name)

    for name in FILES:
        visit(name, ())
    assert len(done) >= len(FILES)


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_touch_neither_disk_nor_terminal(name):
    modules = {
        top(m)
        for node in ast.walk(TREES[name])
        for m in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not modules & IMPURE_IMPORTS
    assert not {top(m) for m in imported(name)} & {"cli", "specs", "spec_check", "export"}
    wrong = [(call, line) for call, line in calls(name) if call.split(".")[-1] in IMPURE_CALLS]
    assert wrong == []


def test_only_the_command_line_prints():
    for name in FILES:
        if top(name) != "cli":
            printing = [
                c for c in calls(name) if c[0] in ("print", "typer.echo", "sys.stdout.write")
            ]
            assert printing == [], name
            assert not re.search(r"^(from|import) (rich|typer)\b", FILES[name].read_text(), re.M), (
                name
            )


def test_the_core_imports_neither_its_neighbours_nor_the_benchmarks():
    for name, tree in TREES.items():
        if top(name) not in NEIGHBOURS | {"cli"}:
            assert not {top(other) for other in imported(name)} & NEIGHBOURS, name
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [m for m in names if top(m) == "expunge_bench"], name


def test_only_the_demo_and_the_benchmarks_know_the_true_labels():
    for name, tree in TREES.items():
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert top(name) == "demo" or "GroundTruth" not in names, name


def test_no_function_outside_the_command_line_takes_more_than_five_positional_arguments():
    wrong = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if top(name) != "cli" and isinstance(node, ast.FunctionDef):
                positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
                if len([a for a in positional if a not in ("self", "cls")]) > 5:
                    wrong.append(f"{name}:{node.lineno} {node.name}")
    assert wrong == []


@pytest.mark.parametrize(
    "command", ["import expunge", "import expunge.cli; expunge.cli.load_group('')"]
)
def test_heavy_packages_are_loaded_where_they_are_used(command):
    code = f"import sys; {command}; print(*sorted(m for m in sys.modules if '.' not in m))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(found.stdout.split()) & HEAVY


def test_no_global_seed_is_set():
    torch_s = ("torch.manual_seed", "torch.default_generator.manual_seed")
    for name in FILES:
        seeding = [
            c
            for c in calls(name)
            if c[0] in (*torch_s, "np.random.seed", "random.seed") and name != "_core.rng"
        ]
        assert seeding == [], name
        text = FILES[name].read_text(encoding="utf-8")
        assert not re.search(r"np\.random\.(rand|randn|randint|permutation|choice|shuffle)\b", text)
    made = [c[0] for c in calls("_core.rng")]
    assert [made.count(name) for name in torch_s] == [1, 1]  # inside fork_rng


def test_nothing_is_unpickled_or_evaluated():
    for name in FILES:
        for call, line in calls(name):
            assert call not in ("eval", "exec"), (name, line)
            if name != "data.cifar":
                assert call not in ("pickle.load", "pickle.loads", "pickle.Unpickler"), (name, line)
    loads = [
        node
        for name in FILES
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert loads
    for node in loads:
        safe = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert safe.get("weights_only") == "True", node.lineno


def test_no_path_is_absolute():
    for name, tree in TREES.items():
        documented = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in documented
            ):
                assert not re.match(
                    r"(/(home|work|tmp|root|usr|data|mnt)\b|[A-Z]:\\)", node.value
                ), (
                    name,
                    node.lineno,
                )


def test_everything_public_says_what_it_does():
    silent = [
        f"{name}:{node.lineno} {getattr(node, 'name', '')}"
        for name, tree in TREES.items()
        for node in [*tree.body]
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and len(ast.unparse(node).splitlines()) > 4  # a short one says it by its name
    ]
    assert silent == []
    assert all(ast.get_docstring(tree) for name, tree in TREES.items() if tree.body)


def test_input_of_users_is_never_checked_by_assert():
    found = [
        f"{name}:{node.lineno} {ast.unparse(node.test)}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) and "is not None" not in ast.unparse(node.test)
    ]
    assert found == []


def test_no_except_is_bare_or_blind():
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, (name, node.lineno)
                blind = ast.unparse(node.type) in ("Exception", "BaseException")
                # Only around the user's own data set, to say at which item it failed, and around
                # the package tokenizers, which raises plain exceptions.
                assert not blind or name in ("data.dataset", "data.texts"), (name, node.lineno)


def test_the_public_names_exist():
    assert sorted(expunge.__all__) == list(expunge.__all__)
    assert set(expunge._PUBLIC) | {"__version__"} == set(expunge.__all__)
    for name in expunge._PUBLIC:
        assert getattr(expunge, name).__doc__ or name == "DataLike", name
    assert expunge.__version__


def parsed_docstring(function: object) -> Docstring:
    return parse(inspect.getdoc(function) or "", style=DocstringStyle.NUMPYDOC)


def documented_parameters(parsed: Docstring) -> set[str]:
    """Names of the section Parameters; one entry can describe several."""
    return {n.strip(" *") for p in parsed.params for n in p.arg_name.split(",")}


PUBLIC = [name for name in expunge._PUBLIC if inspect.isfunction(getattr(expunge, name))]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_are_typed_and_document_every_parameter(name):
    """NumPy sections that numpydoc's parser reads, with every parameter of the signature."""
    function = getattr(expunge, name)
    parsed, signature = parsed_docstring(function), inspect.signature(function)
    assert documented_parameters(parsed) == set(signature.parameters), name
    assert parsed.short_description
    assert ">>> " in (inspect.getdoc(function) or ""), name  # run by --doctest-modules
    hints = get_type_hints(function)
    assert set(signature.parameters) <= set(hints), name
    assert Any not in [hints[p] for p in signature.parameters], name


CLASSES = [
    name
    for name in expunge._PUBLIC
    if inspect.isclass(found := getattr(expunge, name)) and is_dataclass(found)
]


@pytest.mark.parametrize("name", CLASSES)
def test_public_records_document_every_field(name):
    record = getattr(expunge, name)
    assert documented_parameters(parsed_docstring(record)) == {f.name for f in fields(record)}


REGISTRIES = [
    (kind, name) for kind in results.REGISTRIES for name in results._registry(kind).names()
]


@pytest.mark.parametrize(("kind", "name"), REGISTRIES)
def test_plugins_document_their_options(kind, name):
    registry = results._registry(kind)
    parsed = parsed_docstring(registry.get(name))
    assert parsed.short_description, name
    undocumented = set(registry.options(name)) - documented_parameters(parsed)
    assert not undocumented or kind in ("sources", "trainers"), (name, undocumented)
