"""requirements.txt is the flat list of what pyproject.toml names by extras, and the version is said once."""

import tomllib
from pathlib import Path

import pytest

import attnjax
from attnjax.errors import UserError, import_extra

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_requirements_are_the_dependencies_and_extras_of_the_project():
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    extras = PROJECT["optional-dependencies"]
    named = [*PROJECT["dependencies"], *extras["translation"], *extras["slurm"], *extras["dev"]]
    assert sorted(filter(None, lines)) == sorted(named)


def test_python_versions_agree():
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    for minor in (11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in PROJECT["classifiers"]
        assert f'"3.{minor}"' in workflow


def test_citation_and_changelog_name_the_version():
    assert f"version: {attnjax.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{attnjax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_missing_extra_is_named():
    assert import_extra("tomllib", "dev") is tomllib
    with pytest.raises(UserError, match=r"no_such_module is not installed: pip install 'attnjax\[slurm\]'"):
        import_extra("no_such_module", "slurm")
