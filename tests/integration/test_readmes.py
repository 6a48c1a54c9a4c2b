"""What a README shows, runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).resolve().parents[2]
READMES = [
    ROOT / "README.md",
    ROOT / "DIFFERENCES.md",
    *sorted(ROOT.glob("packages/*/README.md")),
    ROOT / "packages" / "torchopt-implicit" / "SOLVERS.md",
]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_blocks_run_in_order(
    readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = list(Sybil([PythonCodeBlockParser()]).parse(readme).examples())
    assert examples, f"{readme.name} shows no python block"
    for example in examples:
        example.evaluate()
