"""What surrounds the program: workflows, templates and pages name what there is, and nothing that must not be named."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
#: Written in halves, so that this file may be searched too.
REGISTRIES = ["py" + "pi.org", "python" + "hosted.org", "ana" + "conda.org", "download.py" + "torch.org/whl"]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return found


def tracked() -> list[str]:
    """Files of the repository, with those that are about to be added."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_call_what_there_is_and_may_do_little(path: Path) -> None:
    workflow = load(path)
    assert "NOT RUN HERE" in path.read_text("utf-8").partition("\non:")[0]
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] and set(job.get("permissions", {})) <= {"id-token"}
        for step in job["steps"]:
            assert re.search(r"@(v\d+|release/v\d+)$", step.get("uses", "@v1")), step
            for script in re.findall(r"scripts/[\w-]+(?:\.\w+)?", step.get("run", "")):
                assert os.access(ROOT / script, os.X_OK), script


def test_ci_runs_every_python_that_the_package_claims() -> None:
    prefix = "Programming Language :: Python :: "
    claimed = {c.removeprefix(prefix) for c in project()["classifiers"] if c.startswith(prefix + "3.")}
    matrix = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert set(matrix["python"]) == claimed


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.name)
def test_issue_templates_are_forms(path: Path) -> None:
    form = load(path)
    if path.name == "config.yml":
        return
    assert form["name"] and form["description"]
    kinds = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    assert {part["type"] for part in form["body"]} <= kinds
    identities = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(set(identities)) == len(identities) > 0
    assert "Never attach data of patients" in path.read_text("utf-8")


def test_hooks_before_a_commit_need_nothing_from_elsewhere() -> None:
    (only,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert only["repo"] == "local"
    assert {hook["language"] for hook in only["hooks"]} == {"system"}


def test_no_file_names_a_package_registry() -> None:
    for name in tracked():
        text = (ROOT / name).read_bytes().decode("utf-8", "replace")
        assert not [host for host in REGISTRIES if host in text], name


def test_links_between_pages_lead_somewhere() -> None:
    for name in tracked():
        if not name.endswith(".md"):
            continue
        for target in re.findall(r"\]\(([^()\s]+)\)", (ROOT / name).read_text("utf-8")):
            path = target.partition("#")[0]
            if path and "://" not in path:
                assert (ROOT / name).parent.joinpath(path).exists(), f"{name}: {target}"


def test_extras_that_pages_name_exist() -> None:
    extras = set(project()["optional-dependencies"])
    for name in tracked():
        if name.endswith((".md", ".yml", ".sh")) or name.startswith("scripts/"):
            text = (ROOT / name).read_text("utf-8", "replace")
            for named in re.findall(r"pip install[^\n]*?\.\[([a-z,]+)\]", text):
                assert set(named.split(",")) <= extras, name
