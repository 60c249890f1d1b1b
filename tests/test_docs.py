"""README, CONTRIBUTING, CHANGELOG and docs: their code runs, their commands and links exist."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from dataclasses import asdict
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from expunge import cli, specs
from expunge.cli.terminal import app
from expunge.detection.detectors import detectors
from expunge.recipes import Recipe, recipes
from expunge.scaffold.examples import write_example
from expunge.spec_check import check_spec

pytestmark = pytest.mark.usefixtures("few_trees")

ROOT = Path(__file__).parent.parent
_SPEC = importlib.util.spec_from_file_location("n", ROOT / "docs" / "hooks" / "notebooks.py")
assert _SPEC is not None
assert _SPEC.loader is not None
notebooks = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(notebooks)
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
PAGES += [p for p in [ROOT / "benchmarks" / "README.md"] if p.is_file()]
SOURCES = sorted(p for p in (ROOT / "src").rglob("*") if p.suffix in (".py", ".j2"))
# Words of the former, private dialect. The right column of vocabulary tables has the field's terms.
DIALECT = re.compile(
    r"\bby heart\b|\btold\b|\bheard\b|\bsurer\b|\btrained anew\b|\ball the same\b"
    r"|\bspeaks? against\b|\b(has|have) (a|no) say\b|\bso many at a time\b|\bmended\b"
    r"|\blooks? again\b|\bgoes on from\b"
)
MAX_README_LINES = 250
# Pages that `make docs` makes of the code.
GENERATED = [
    f"reference/{name}.md" for name in ("commands", "python", "errors", "recipes", "plugins")
]
# Pages of which the Python is run.
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
EXECUTED = [
    *("README.md", "CONTRIBUTING.md"),
    *(p.relative_to(ROOT).as_posix() for p in TUTORIALS if "```python" in p.read_text("utf-8")),
]


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The arguments of every line in a bash block that begins with ``expunge``."""
    found = [*blocks(page, "bash"), *blocks(page, "sh")]
    lines = [line for block in found for line in block.splitlines()]
    split = [shlex.split(line, comments=True) for line in lines if line.startswith("expunge ")]
    return [words[1:] for words in split]


def python_cells(page: Path) -> list[str]:
    """The Python of the notebook that the site makes of a tutorial."""
    found = json.loads(notebooks.notebook(page.read_text(encoding="utf-8")))
    code = ["".join(cell["source"]) for cell in found["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in code if not cell.startswith("%%bash")]


def application() -> Any:
    """The command line with the commands of all installed packages."""
    for group in ("text", "nmtune", "bench"):
        cli.load_group(group)
    return typer.main.get_command(app)


@pytest.fixture
def _plugins_of_examples_go():
    """What an example registers is removed again, for the tests that run after it."""
    before = {registry: set(registry.names()) for registry in (detectors, recipes)}
    yield
    for registry, names in before.items():
        for name in set(registry.names()) - names:
            del registry._items[name], registry._metadata[name]


@pytest.mark.usefixtures("_plugins_of_examples_go")
@pytest.mark.parametrize("name", EXECUTED)
def test_the_python_of_a_page_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": name}
    cells = blocks(ROOT / name, "python")
    if ROOT / name in TUTORIALS:
        cells = python_cells(ROOT / name)
    assert cells
    for cell in cells:
        exec(compile(cell, name, "exec"), names)
    if name == "README.md":
        assert (tmp_path / "runs" / "digits" / "report.html").is_file()
        assert names["result"].decision.action == "keep"


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda p: p.name)
def test_a_notebook_has_every_block_and_every_sentence_of_its_tutorial(page):
    text = page.read_text(encoding="utf-8")
    found = json.loads(notebooks.notebook(text))
    cells = found["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert python_cells(page) == [block.rstrip() for block in blocks(page, "python")]
    bash = [cell["source"] for cell in cells if cell["source"].startswith("%%bash")]
    assert bash == [f"%%bash\n{block}".rstrip() for block in blocks(page, "bash")]
    prose = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    assert prose.startswith("# ")
    assert ".md" not in prose
    assert "```toml" in prose or "```toml" not in text
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.from_dict(found))


def test_the_spec_of_the_readme_fits_the_example_folder(tmp_path):
    write_example("digits", tmp_path / "first")
    (spec,) = blocks(ROOT / "README.md", "toml")
    (tmp_path / "first" / "readme.toml").write_text(spec, encoding="utf-8")
    assert check_spec(tmp_path / "first" / "readme.toml") == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_in_the_docs_exist_with_their_options(page):
    root = application()
    for words in commands(page):
        command, rest = root, list(words)
        while hasattr(command, "commands"):
            assert rest, f"{page.name}: {' '.join(words)} names a group and no command"
            found = command.commands.get(rest[0])
            assert found is not None, f"{page.name}: no command '{' '.join(words)}'"
            command, rest = found, rest[1:]
        options = {o for parameter in command.params for o in parameter.opts}
        for word in rest:
            if word.startswith("--"):
                assert word.partition("=")[0] in options, f"{page.name}: {' '.join(words)}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_recipes_detectors_and_states_in_commands_exist(page):
    options = pytest.importorskip("expunge_bench.options")
    oracles_and_peers = pytest.importorskip("expunge_bench.oracles").oracles_and_peers
    detect = pytest.importorskip("expunge_bench.detect")
    known = {
        "--recipe": [*recipes.names(), *oracles_and_peers.names()],
        "--detector": detect.detection_names(),
        "--ranking": ["default", *recipes.names()],
        "--state": [state.value for state in options.State],
    }
    for words in commands(page):
        for option, value in pairwise(words):
            assert option not in known or value in known[option], f"{page.name}: {option} {value}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_point_to_files(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:|#", target):
            file = page.parent / target.partition("#")[0]
            generated = [(ROOT / "docs" / name).resolve() for name in GENERATED]
            known = file.is_file() or file.resolve() in generated
            assert known, f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_the_docs_import_exists(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("expunge"):
                module = import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}: {node.module}.{alias.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_row_of_a_table_has_the_cells_of_its_head(page):
    head = 0
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if re.match(r"\s*\|", line) else 0
        assert not (head and cells and cells != head), f"{page.name}: {line}"
        head = cells and (head or cells)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_docs_use_the_terms_of_the_field(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    if page.name == "former_names.md":  # its tables quote them
        lines = [line for line in lines if not line.startswith("|")]
    assert [line for line in lines if DIALECT.search(line)] == []


def test_the_source_uses_the_terms_of_the_field():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if DIALECT.search(line) and '"told"' not in line
    ]
    assert found == []


def test_every_key_of_a_data_set_is_in_the_reference_of_specs():
    from dataclasses import fields

    text = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    data = [f.name for f in fields(specs.DataConfig)]
    tune = [f.name for f in fields(specs.TuneConfig)]
    model = [f"model.{f.name}" for f in fields(specs.ModelConfig)]
    missing = [name for name in (*data, *tune, *model) if f"`{name}`" not in text]
    assert missing == []
    for stage in ("score", "partition", "rank", "prune", "rounds"):
        for f in fields(type(getattr(recipes.get("default")(Recipe()), stage))):
            assert f"`{stage}.{f.name}" in text, f"{stage}.{f.name}"


def test_the_reference_has_every_command_with_its_options():
    text = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in section(text, "Commands") if line.startswith("| `")]
    described = {
        name: set(re.findall(r"--[\w-]+", row[-1]))
        for row in rows
        for name in re.findall(r"`([a-z]+)", row[0])
    }
    groups = ("text", "nmtune", "bench")
    for name, command in application().commands.items():
        if name not in groups:
            options = {o for p in command.params for o in p.opts if o.startswith("--")}
            assert described[name] == options - {"--help"}, name
    assert described.keys() >= set(groups)


def test_the_readme_of_the_benchmarks_lists_every_one():
    page = ROOT / "benchmarks" / "README.md"
    listed = re.findall(r"^\| `bench ([\w-]+)`", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(application().commands["bench"].commands)


def test_the_reference_has_every_setting_of_a_stage_and_the_default_detectors():
    lines = section((ROOT / "docs" / "spec.md").read_text(encoding="utf-8"), "Stages")
    heads = " ".join(line.split(" | ")[0] for line in lines)
    default = recipes.get("default")(Recipe())
    for stage in ("score", "partition", "rank", "prune", "edit", "rounds"):
        for setting in asdict(getattr(default, stage)):
            assert f"`{stage}.{setting}" in heads
    for setting in asdict(default.tune):
        assert f"`{setting}" in heads
    (row,) = (line for line in lines if line.startswith("| `score.detectors`"))
    assert tuple(re.findall(r"`(\w+)`", row.split(" | ")[-1])) == default.score.detectors


def section(text: str, title: str) -> list[str]:
    """The lines of a section of a page."""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0].splitlines()


def test_every_red_flag_is_in_its_reference_with_what_to_do():
    text = (ROOT / "docs" / "reference" / "flags.md").read_text(encoding="utf-8")
    sources = [*(ROOT / "src").rglob("*.py")]
    raised = {
        node.args[0].value
        for path in sources
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "Flag"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert raised
    assert {name for name in raised if f"| `{name}` |" not in text} == set()


def test_every_page_is_in_the_navigation_of_the_site():
    listed = set(
        re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    )
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert pages - listed == set()
