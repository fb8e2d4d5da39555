"""What is installed: its names, its version, and that nothing of it is called as a user's own file may be."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import find_packages

import surgeon
from surgeon import reference

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_nothing_but_surgeon_is_installed() -> None:
    found = PROJECT["tool"]["setuptools"]["packages"]["find"]
    packages = find_packages(str(ROOT), include=found["include"])
    assert {package.partition(".")[0] for package in packages} == {"surgeon"}
    assert "surgeon.reference" in packages
    assert not [package for package in packages if "test" in package]


def test_the_reference_networks_are_one_copy() -> None:
    assert Path(reference.__file__).resolve() == (ROOT / "models" / "__init__.py").resolve()
    for path in (ROOT / "models").glob("*.py"):
        assert not re.search(r"^\s*(import|from) models\b", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_version_is_told_alike() -> None:
    version = surgeon.__version__
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert PROJECT["project"]["name"] == "model-surgeon" and PROJECT["project"]["dynamic"] == ["version"]


def test_supported_versions_are_those_that_are_told() -> None:
    told = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["project"]["classifiers"]))
    assert told == ["3.11", "3.12"] and PROJECT["project"]["requires-python"] == ">=3.11,<3.13"
