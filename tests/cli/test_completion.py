"""Completion as bash asks for it, with the script that `ssclf --show-completion` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ssclf

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="no bash here")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A PATH on which this ssclf is a program of its own name, and a home that nothing is left in."""
    program = tmp_path / "bin" / "ssclf"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom ssclf.cli.app import main\nmain()\n")
    program.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(ssclf.__file__).parents[1]),
        "HOME": str(tmp_path),
    }


def bash(script: str, environment: dict[str, str]) -> str:
    assert BASH
    done = subprocess.run(
        [BASH, "--norc", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("train --augmentation ", ["light", "half", "heavy", "flip", "none"]),
        ("train --model r", ["r2plus1d", "r3d"]),
        ("predict --skull-strip ", ["auto", "deepbet", "bet", "hd-bet", "synthstrip", "none"]),
        ("predict --device c", ["cpu", "cuda"]),
        ("export --format ", ["onnx", "torchscript", "monai-bundle"]),
        ("cv --models mc3,r", ["mc3,r2plus1d", "mc3,r3d"]),
        ("cv --scheme ", ["paper", "kfold"]),
        ("pre", ["predict", "pretrain", "preprocess"]),
    ],
)
def test_tab_offers_the_choices(typed: str, offered: list[str], environment: dict[str, str]) -> None:
    words = f"ssclf {typed}".split(" ")
    listed = " ".join(f"'{word}'" for word in words)
    script = (
        'eval "$(_SSCLF_COMPLETE=source_bash ssclf)"\n'
        f"COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}\n"
        "_ssclf_completion ssclf\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert bash(script, environment).split() == offered


def test_completion_can_be_shown_and_installed(environment: dict[str, str], tmp_path: Path) -> None:
    assert "complete -o default -F _ssclf_completion ssclf" in bash(
        "ssclf --show-completion; true", environment
    )
    bash("ssclf --install-completion; true", environment)
    scripts = [path.read_text() for path in tmp_path.rglob("*.sh")]
    assert any("_SSCLF_COMPLETE=complete_bash" in text for text in scripts)
    assert ".bash_completions/ssclf.sh" in (tmp_path / ".bashrc").read_text()
