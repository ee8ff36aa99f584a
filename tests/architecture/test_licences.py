"""What users install: under which licences, and not below versions with faults that our promises rest on."""

import tomllib
from itertools import chain

import licences
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def test_no_version_with_a_known_vulnerability_is_asked_for() -> None:
    every = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    bounds = {canonicalize_name(r.name): r.specifier for r in map(Requirement, every)}
    asked = licences.ADVISORIES.keys() & bounds.keys()
    assert asked >= {"torch", "pillow", "jinja2", "pyyaml", "datasets", "ray"}
    for name in asked:
        [bound] = bounds[name]
        assert bound.operator == ">="
        assert not licences.outdated(name, bound.version), name


def test_what_is_installed_has_no_known_vulnerability_and_an_old_version_would() -> None:
    assert [p for p in licences.packages() if licences.outdated(p.name, p.version)] == []
    assert "CVE-2026-24747" in licences.outdated("torch", "2.9.1")
    assert "CVE-2024-28219" in licences.outdated("Pillow", "10.2.0")
    assert not licences.outdated("torch", "2.10.0+cu130")
    assert not licences.outdated("numpy", "1.0")
