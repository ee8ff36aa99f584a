"""What users install: under which licences, and not below versions with faults that our promises rest on."""

import tomllib
from importlib import metadata

import licences
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

FLOORS = {
    "torch": "2.6",  # CVE-2025-32434: before, weights_only=True could be made to run code
    "torchvision": "0.21",  # the one of torch 2.6
    "datasets": "2.20",  # before, a data set of the hub could bring code that was run without a question
    "Pillow": "10.3",  # CVE-2024-28219, an overflow
    "jinja2": "3.1.6",  # CVE-2025-27516
    "PyYAML": "6.0",  # before 5.4, loaders ran code
    "numpy": "1.26",
    "safetensors": "0.4.3",
}
PROJECT = tomllib.loads((licences.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_nothing_that_users_run_is_under_a_gpl_and_every_licence_is_known() -> None:
    found = list(licences.packages())
    assert {p.name for p in found} >= {"torch", "numpy", "pyyaml", "typing-extensions"}
    assert [p for p in found if not p.licence] == []
    assert [p for p in found if licences.is_copyleft(p.licence)] == []


@pytest.mark.parametrize(
    ("said", "bad"),
    [
        ("LGPL-2.1-only", True),
        ("GPLv3", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("AGPL-3.0-or-later", True),
        ("MIT AND LGPL-3.0-only", True),
        ("MIT OR GPL-2.0-only", False),
        ("MPL-2.0 AND MIT", False),
        ("BSD-3-Clause", False),
    ],
)
def test_a_gpl_is_told_from_other_licences(said: str, bad: bool) -> None:
    assert licences.is_copyleft(said) == bad


@pytest.mark.parametrize(("package", "version"), FLOORS.items())
def test_versions_with_known_faults_are_not_asked_for(package: str, version: str) -> None:
    lower = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}[package]
    [bound] = lower
    assert bound.operator == ">="
    assert Version(bound.version) >= Version(version)
    assert Version(metadata.version(package)) >= Version(version)
