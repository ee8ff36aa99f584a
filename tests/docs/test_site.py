"""The site: a home page made of the README, and a reference page for every module."""

import importlib.util
import re
from types import ModuleType

import pytest
from where import ROOT


@pytest.fixture(scope="module")
def site() -> ModuleType:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_readme_lead_to_pages_or_become_words(site: ModuleType) -> None:
    text, pictures = site.home(
        "[zoo](docs/zoo.md#x) ![a plot](experiments/figures/a.png) [code](tests/test_x.py) [up](#top) [w](https://a.b)"
    )
    assert text == ("[zoo](zoo.md#x) ![a plot](experiments/figures/a.png) code [up](#top) [w](https://a.b)")
    assert pictures == ["experiments/figures/a.png"]
    assert site.home("![a plan](docs/house.svg)") == ("![a plan](house.svg)", [])


def test_every_module_has_a_page_and_every_package_a_section(site: ModuleType) -> None:
    modules = set(site.modules())
    assert {
        "probing",
        "probing.store.store",
        "probing.attribution.lrp.lrp",
        "concepts.cli.init",
    } <= modules
    listed = str([site._section(package) for package in site.PACKAGES])
    assert all(f"'{site.page(module)}'" in listed for module in modules)


def test_pictures_of_the_readme_are_there(site: ModuleType) -> None:
    text, pictures = site.home((ROOT / "README.md").read_text(encoding="utf-8"))
    own = set(re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text)) - set(pictures)
    assert pictures
    assert own
    assert all((ROOT / picture).is_file() for picture in pictures)
    assert all((ROOT / "docs" / picture).is_file() for picture in own)


def test_links_of_pages_into_the_repository_lead_there() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert re.match("https?:", target) or (page.parent / target).exists(), (page, target)
