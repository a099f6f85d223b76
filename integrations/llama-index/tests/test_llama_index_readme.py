"""The README of the package is right: its Python runs, on the reference model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
# LlamaIndex's agents use what pydantic and its own workflows have deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step"),
]
REPLACED = "I'm sorry, but I can't help with that."


def test_python_in_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "readme"}
    shown = []
    for code in BLOCKS:
        exec(compile(code, "README.md", "exec"), names)
        shown.append(capsys.readouterr().out)
    engines, own = shown
    assert "Clean the table" in engines
    assert "corvel cork" not in engines
    assert engines.count(REPLACED) == 2
    assert REPLACED in own
    assert "kite" in own
