"""What the site is made of besides the pages in this folder: the README as home, and a reference page for each module."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("probing", "concepts")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append pages that the navigation does not name, and the reference, a section for each package."""
    assert config.nav is not None
    named = set(re.findall(r"[\w/]+\.md", str(config.nav)))
    docs = Path(config.docs_dir)
    config.nav += [p.name for p in sorted(docs.glob("*.md")) if p.name not in named]
    config.nav.append({"Reference": [{package: _section(package)} for package in PACKAGES]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the home page with its pictures, and the reference pages."""
    text, pictures = home((ROOT / "README.md").read_text(encoding="utf-8"))
    files.append(File.generated(config, "index.md", content=text))
    for picture in pictures:
        files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    for module in modules():
        files.append(File.generated(config, page(module), content=reference(module)))
    return files


def home(readme: str) -> tuple[str, list[str]]:
    """Return the README as a page of the site, and the pictures it shows, by their paths in the repository.

    Links into `docs/` become links between pages, and pictures there are the site's already; other links into the repository
    become plain words.
    """
    pictures = []

    def at_home(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        if re.match(r"https?:|#", target):
            return match[0]
        inside = PurePosixPath(target)
        if inside.parts[0] == "docs":
            return f"{image}[{words}]({inside.relative_to('docs')})"
        if image:
            pictures.append(target)
            return match[0]
        return words

    return _LINK.sub(at_home, readme), pictures


def reference(module: str) -> str:
    """Return a module's page; of classes without a signature, such as schemas, it shows every field."""
    path = ROOT.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    fields = bool(re.search(r"\((Schema|Table|NamedTuple)\):", source))
    options = "    options:\n      show_if_no_docstring: true\n" if fields else ""
    return f"---\ntitle: {module}\n---\n\n::: {module}\n{options}"


def modules() -> Iterator[str]:
    """Yield every public module by its dotted name, packages before what is in them."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py"), key=_order):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _order(path: Path) -> tuple[str, ...]:
    return path.with_suffix("").relative_to(ROOT).parts


def page(module: str) -> str:
    """Return where a module's reference page lies."""
    return f"reference/{module}.md"


def _section(package: str) -> list[Any]:
    """Return the navigation of a package: its own page, its modules', and a section for each package inside."""
    depth = package.count(".") + 1
    own = [m for m in modules() if m.startswith(f"{package}.") and m.count(".") == depth]
    inner = {m.rpartition(".")[0] for m in modules()}
    entries: list[Any] = [page(package)]
    for module in own:
        name = module.rpartition(".")[2]
        entries.append({name: _section(module) if module in inner else page(module)})
    return entries
