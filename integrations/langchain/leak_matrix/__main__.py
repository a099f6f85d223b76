"""The command ``python -m leak_matrix``: prints the tables, saves them, writes them into the documentation."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

from leak_matrix.plants import WORDS
from leak_matrix.positions import OURS
from leak_matrix.table import DOCS, Table, block, by_plant, by_surface, replaced, versions


def main() -> None:
    """Runs the matrix."""
    parser = argparse.ArgumentParser(prog="leak_matrix", description="Where in LangChain a planted word can be read.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the tables as JSON")
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{DOCS.name}")
    asked = parser.parse_args()
    tables = [by_surface(), by_plant()]
    for table in tables:
        show(table)
    print(f"One word in {WORDS} is harmful. " + ", ".join(f"{name} {number}" for name, number in versions().items()))
    if asked.json:
        saved = {"versions": versions(), "tables": [table.to_dict() for table in tables]}
        asked.json.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    if broken := [name for name in OURS if any(leaks(table, name) for table in tables)]:
        parser.exit(1, f"{', '.join(broken)} must not leak: nothing is written into the documentation\n")
    if asked.write:
        DOCS.write_text(replaced(DOCS.read_text(encoding="utf-8"), block(tables)), encoding="utf-8")


def leaks(table: Table, column: str) -> bool:
    """Whether the word was found in any row of a column."""
    at = table.columns.index(column)
    return any((cells[at] or "").startswith("LEAK") for cells in table.rows.values())


def show(table: Table) -> None:
    """Prints a table, with rich where that is installed."""
    rows = [[name, *(cell or "-" for cell in cells)] for name, cells in table.rows.items()]
    lines = [[table.title, *table.columns], *rows]
    if importlib.util.find_spec("rich") is None:
        widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        print()
        return
    from rich.console import Console
    from rich.table import Table as RichTable

    shown = RichTable(*lines[0])
    for first, *cells in rows:
        shown.add_row(first, *(f"[{_colour(cell)}]{cell}[/]" for cell in cells))
    Console().print(shown)


def _colour(cell: str) -> str:
    return {"LEAK": "bold red", "safe": "green"}.get(cell[:4], "dim")


if __name__ == "__main__":
    main()
