"""Every example runs as it stands, and stays short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SAYS = {
    "own_lightning_module": ("Dissection of 64 neurons in 1 layer", "McNemar"),
    "plain_pytorch": ("Dissection of 64 neurons in 1 layer", "points on test"),
    "timm_image_folder": ("Dissection of", "conv_head"),
}


@pytest.mark.parametrize("path", [*EXAMPLES, ROOT / "examples" / "sweep.sh"], ids=lambda path: path.stem)
def test_an_example_has_less_than_sixty_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    surroundings = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    for words in SAYS[path.stem]:
        assert words in ran.stdout
