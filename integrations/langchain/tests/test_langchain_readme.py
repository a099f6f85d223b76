"""The README of the package is right: its Python runs, against a real server and a real model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers_serve import MODEL, RealServer, transformers_serve

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

pytestmark = pytest.mark.allow_hosts(["127.0.0.1"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with transformers_serve(tmp_path_factory.mktemp("serve") / "log") as running:
        yield running


def test_python_in_the_readme_runs(server: RealServer, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "readme"}
    shown = []
    for code in BLOCKS:
        here = code.replace("http://127.0.0.1:8000/v1", server.base_url).replace("ada_guard/reference/chat", MODEL)
        exec(compile(here, "README.md", "exec"), names)
        shown.append(capsys.readouterr().out)
    chain, agent, cut = shown
    assert "kite" in chain
    assert "boat" in agent
    replaced, entry, kept = cut.strip().splitlines()
    assert replaced == kept == "I'm sorry, but I can't help with that."
    assert "'verdict': 'flag'" in entry
