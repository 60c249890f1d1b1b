"""Pages of the site that are made from the README, the registries, the commands and docstrings."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

import expunge
from expunge import cli
from expunge.cli.results import REGISTRIES
from expunge.cli.terminal import app

sys.path.insert(0, str(Path(__file__).parent))
from notebooks import notebook

ROOT = Path(__file__).parents[2]
# Files outside the docs that are pages too.
COPIED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
SPECS = sorted((ROOT / "examples").glob("*.toml"))
GROUPS = ("text", "nmtune")
# Public names that have no docstring of their own, or stand on the page of the settings.
SETTINGS = (
    *("ScoreConfig", "PartitionConfig", "RankConfig", "PruneConfig"),
    *("EditConfig", "RoundsConfig"),
)
LEFT_OUT = ("DataLike", "DataConfig", "TuneConfig", *SETTINGS)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    pages = {
        "reference/commands.md": commands(),
        "reference/python.md": public_names(),
        "reference/errors.md": errors(),
        "reference/recipes.md": recipes(),
        "reference/plugins.md": plugins(),
        "limits.md": limits(),
    }
    for source, page in COPIED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        pages[page] = relinked(text, Path(source).parent)
    for spec in SPECS:
        pages[f"examples/{spec.name}"] = spec.read_text(encoding="utf-8")
    for tutorial in sorted((ROOT / "docs" / "tutorials").glob("*.md")):
        text = notebook(tutorial.read_text(encoding="utf-8"))
        pages[f"tutorials/{tutorial.stem}.ipynb"] = text
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links of the docs to files outside lead to the pages made of them.

    A tutorial gets a link to its notebook.
    """
    if page.file.src_uri.startswith("tutorials/"):
        link = f"[Download as a notebook]({Path(page.file.src_uri).stem}.ipynb)"
        title, _, rest = markdown.partition("\n")
        markdown = f"{title}\n\n{link}\n{rest}"
    depth = "../" * page.file.src_uri.count("/")
    pages = COPIED | {f"examples/{spec.name}": f"examples/{spec.name}" for spec in SPECS}
    for source, target in pages.items():
        markdown = markdown.replace(f"]({depth}../{source}", f"]({depth}{target}")
    return markdown


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse scripts, styles, fonts and images of other servers: the site works offline."""
    foreign = re.findall(r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//[^"]+', output)
    for link in re.findall(r'<link[^>]+href="(?:https?:)?//[^>]+', output):
        if 'rel="stylesheet"' in link or "preconnect" in link:
            foreign.append(link)
    if foreign:
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {foreign[0]}")
    return output


def relinked(text: str, folder: Path) -> str:
    """Links of a file outside the docs, as links of a page at the top of the site."""

    def target(match: re.Match[str]) -> str:
        path, _, anchor = match[1].partition("#")
        if re.match(r"[a-z]+:", path) or not path:
            return match[0]
        resolved = (ROOT / folder / path).resolve().relative_to(ROOT).as_posix()
        page = COPIED.get(resolved, resolved.removeprefix("docs/"))
        return f"]({page}{'#' if anchor else ''}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", target, text)


def limits() -> str:
    """The section of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## Limits\n")[2].partition("\nLicence")[0]
    return f"# Limits\n{relinked(section, Path())}"


def is_error(value: object) -> bool:
    """Whether it is a class of our exceptions."""
    return isinstance(value, type) and issubclass(value, Exception)


def public_names() -> str:
    """The public functions and classes, from their docstrings."""
    values = {name: getattr(expunge, name) for name in expunge._PUBLIC if name not in LEFT_OUT}
    parts = {
        "Functions": [v for v in values.values() if not isinstance(v, type)],
        "Classes": [v for v in values.values() if isinstance(v, type) and not is_error(v)],
    }
    lines = ["# Python", "", "All names of `expunge`. Each stage is a function of its own.", ""]
    for title, found in parts.items():
        lines += [f"## {title}", ""]
        lines += [f"::: {value.__module__}.{value.__qualname__}\n" for value in found]
    return "\n".join(lines)


def errors() -> str:
    """The exceptions, from their docstrings."""
    head = [
        "# Errors",
        "",
        "An error says what was expected, what came, where, and after `fix:` what to do. Several "
        "problems come in one error. All are of the class `ExpungeError`; on the command line they "
        "are one message on stderr and exit code 1.",
        "",
    ]
    found = [n for n in expunge._PUBLIC if is_error(getattr(expunge, n))]
    return "\n".join([*head, *(f"::: expunge.errors.{name}\n" for name in found)])


def recipes() -> str:
    """All recipes by role."""
    registry = registry_of("recipes")
    lines = [
        "# Recipes",
        "",
        'A recipe is named in a spec (`recipe = "default"`), in `expunge.repair(…, recipe=…)` or '
        "by `--recipe`. Ablations, baselines and peers can be named in `baselines` too.",
    ]
    by_role: dict[str, list[str]] = {}
    for name in registry.names():
        by_role.setdefault(registry.metadata(name).role, []).append(name)
    for role, names in by_role.items():
        lines += ["", f"## {role.capitalize()}", "", *table(registry, names)]
    return "\n".join(lines)


def plugins() -> str:
    """The plug-ins of every other registry."""
    lines = ["# Detectors and other plug-ins", "", "What `expunge list` prints."]
    for kind in REGISTRIES:
        if kind != "recipes":
            registry = registry_of(kind)
            lines += ["", f"## {kind.capitalize()}", "", *table(registry, registry.names())]
    return "\n".join(lines)


def table(registry: Any, names: Any) -> list[str]:
    """Name, metadata and first sentence."""
    rows = ["| name | | what it does |", "| --- | --- | --- |"]
    for name in names:
        metadata = vars(registry.metadata(name))
        words = [str(v) for k, v in metadata.items() if v and k not in ("needs", "role")]
        summary = registry.summary(name).replace("|", "\\|")
        rows.append(f"| `{name}` | {', '.join(words)} | {summary} |")
    return rows


def registry_of(kind: str) -> Any:
    """The registry, with the plug-ins that are installed."""
    module, _, name = REGISTRIES[kind].partition(":")
    return getattr(import_module(module), name)


def commands() -> str:
    """All commands with their arguments and options."""
    for group in GROUPS:
        cli.load_group(group)
    root = typer.main.get_command(app)
    return "\n".join(["# Commands", "", *described("expunge", root)])


def described(name: str, command: Any) -> Iterator[str]:
    """A command, or those of a group."""
    if hasattr(command, "commands"):
        for child, inner in sorted(command.commands.items()):
            yield from described(f"{name} {child}", inner)
        return
    text = re.sub(r"\s+", " ", command.help or "").strip()
    if not text:
        return
    yield from (f"## `{name}`", "", text, "", "| argument or option | meaning | default |")
    yield "| --- | --- | --- |"
    for parameter in command.params:
        if parameter.name == "help":
            continue
        names = ", ".join(f"`{o}`" for o in parameter.opts)
        if parameter.param_type_name == "argument":
            names = f"`{parameter.name.upper()}`"
        meaning = re.sub(r"\s+", " ", getattr(parameter, "help", "") or "").replace("|", "\\|")
        default = parameter.default
        shown = "" if default in (None, False, "", ()) or callable(default) else f"`{default}`"
        yield f"| {names} | {meaning} | {shown} |"
    yield ""
