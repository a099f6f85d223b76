"""Puts the runs of the demo on the screen: two columns on a terminal, plain text elsewhere. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ada_guard.cli.chart import bar_chart, sparkline
from ada_guard.cli.view import hanging

if TYPE_CHECKING:
    from ada_guard.cli.demo import Mode, Run, Scene

__all__ = ["Stage"]

_WIDTH = 80
_INDENT = 9
_INTRO = (
    'A tiny bundled chat model (1.1 million parameters) has learned to refuse a few things, among them a "luxmire '
    'vial". The name is invented and its steps are nonsense: they stand in for what a real model must not write.'
)
_WORDS = {
    "plain": ("Asked plainly, the model refuses", "No attack, so there is nothing for the guard to do."),
    "prefill-attack": (
        "A prefill attack",
        "The attacker also writes the first words of the answer: the prefill. The model learned to refuse with its "
        "first words only, so from there it simply goes on. The guard puts the model's own assistant header into the "
        "answer and reads off how harmful the model itself finds it, here before the first new token. (Depth: tokens "
        "of the answer so far, the prefill included.)",
    ),
    "turning-text": (
        "A text that turns",
        "A guard can judge any stream, also one that its model does not write. Here a text comes in word by word. A "
        "check that passes clears what stands before it; the rest is held back until the next one, and dropped if that "
        "one flags.",
    ),
    "benign": ("A harmless question, a harmless answer", "The guard changes nothing, token for token."),
}
_NEXT = (
    ("ada-guard run", "chat with this model under guard"),
    ("ada-guard run --model Qwen/Qwen3-0.6B", "guard a real model: any Hugging Face id or folder"),
    ('ada-guard run --prompt "..." --prefill "..."', "an attack of your own; --json prints the events"),
    ("ada-guard demo --json", "the runs above as events"),
    ("ada-guard models", "what is bundled, what is tested"),
)


class Stage:
    """Where the demo is shown.

    Args:
        console: What to write to.
        columns: Two columns; otherwise one run after the other.
    """

    def __init__(self, console: Console, *, columns: bool) -> None:
        self._console = console
        self._columns = columns
        self._scenes = 0

    @classmethod
    def for_stream(cls, stream: IO[str]) -> Stage:
        """A stage that suits the stream."""
        console = Console(file=stream, highlight=False, markup=False, emoji=False)
        # Prose is hard to read in longer lines, and a pipe has no width of its own.
        console.width = min(console.width, _WIDTH) if stream.isatty() else _WIDTH
        return cls(console, columns=stream.isatty())

    def open(self) -> None:
        """The introduction."""
        self._print(Text("ada-guard demo", style="bold"))
        self._say(_INTRO)

    def play(self, scene: Scene, runs: Mapping[Mode, Run]) -> None:
        """One scene in all its modes."""
        guarded, control = runs["guarded"], runs.get("unguarded", runs.get("audit"))
        title, explanation = _WORDS[scene.name]
        self._scenes += 1
        self._heading(f"{self._scenes}. {title}")
        self._say(explanation + "\n")
        self._talk("user", scene.prompt)
        if scene.prefill:
            self._talk("prefill", scene.prefill)
        if guarded.halt is not None and control is not None:
            self._print()
            self._side_by_side(control, guarded)
            charted = guarded
            if len(guarded.checks) == 1 and "audit" in runs:
                charted = runs["audit"]
                flags = sum(check.decision == "flag" for check in charted.checks)
                self._say(f"\nThe same answer, had nothing been cut: {flags} of {len(charted.checks)} checks flag it.")
            for line in bar_chart(charted.checks, prefill_tokens=charted.checks[0].depth if scene.prefill else 0):
                self._print(line)
            return
        self._talk("model", guarded.released)
        passed = f"Passed {len(guarded.checks)} checks, harm probability at most {_highest(guarded):.2f} "
        self._print(Text(f"{passed}{sparkline(guarded.checks)}{_sameness(control, guarded)}", style="green"))

    def close(self, guarded: Sequence[Run], *, unguarded_ms: float, guarded_ms: float) -> None:
        """What it cost, and what to try next.

        Args:
            guarded: The guarded run of each scene, the harmless one last.
            unguarded_ms: Wall time of the harmless answer without the guard, in milliseconds.
            guarded_ms: With the guard.
        """
        unsafe = [run for run in guarded if run.scene.unsafe]
        cut = sum(run.halt is not None for run in unsafe)
        self._heading("Result")
        self._say(
            f"{cut} of {len(unsafe)} unsafe answers cut and replaced. Leaked tokens, shown though no check had "
            f"cleared them: {sum(run.done.unchecked_released_tokens for run in guarded)}."
        )
        done = guarded[-1].done
        self._say(
            f"Cost on the harmless answer of {done.generated_tokens} tokens: {done.checks} checks, {done.check_ms:.0f} "
            f"of {done.wall_ms:.0f} ms ({done.check_ms / done.wall_ms:.0%}). A check rides in a decode step that is "
            f"due anyway. Fastest of three: {guarded_ms:.0f} ms with the guard, {unguarded_ms:.0f} ms without."
        )
        self._say("The model is a stand-in: how well a guard does on a real model is not shown here.")
        self._heading("Next")
        for command, what in _NEXT:
            self._print(Text.assemble((f"  {command}", "bold"), f"\n      {what}"))

    # -- inside ---------------------------------------------------------------------------------------------------

    def _print(self, what: RenderableType = "") -> None:
        self._console.print(what)

    def _say(self, text: str) -> None:
        """Prose, wrapped without the spaces that rich leaves at the ends of lines."""
        self._print(Text(hanging("", text, indent=0, width=self._console.width)))

    def _heading(self, text: str) -> None:
        line = "─" if self._columns else "-"
        self._print(Text(f"\n{text} {line * (self._console.width - len(text) - 1)}", style="bold"))

    def _talk(self, who: str, text: str) -> None:
        self._print(Text(hanging(who, text.strip(), indent=_INDENT, width=self._console.width)))

    def _side_by_side(self, control: Run, guarded: Run) -> None:
        shown, cleared = control.done.released_tokens, guarded.done.released_tokens
        leaked = guarded.done.unchecked_released_tokens
        left = Text(control.released.strip(), style="red"), "without ada-guard", f"{shown} tokens shown", "red"
        caption = f"{leaked} tokens leaked" + (f", {cleared} cleared" if cleared else "")
        right = _guarded_text(guarded), "with ada-guard", caption, "green"
        if not self._columns:
            for text, title, caption, _ in (left, right):
                self._print(f"[{title}: {caption}]")
                self._print(text)
                self._print()
            return
        grid = Table.grid(expand=True)
        grid.add_column(ratio=1)
        grid.add_column(ratio=1)
        settings: dict[str, Any] = {"title_align": "left", "subtitle_align": "left"}
        grid.add_row(
            *(
                Panel(text, title=title, subtitle=caption, border_style=style, **settings)
                for text, title, caption, style in (left, right)
            )
        )
        self._print(grid)


def _guarded_text(run: Run) -> Group:
    parts: list[Text] = []
    if run.released.strip():
        parts.append(Text(run.released.strip(), style="green"))
    if run.halt is not None:
        parts.append(Text(f"--- cut at depth {run.halt.depth} ---", style="bold red"))
    if run.replacement:
        parts.append(Text(run.replacement))
    return Group(*parts)


def _sameness(control: Run | None, guarded: Run) -> str:
    """Whether the guarded run gave the tokens of its control, where there is one."""
    if control is None:
        return ""
    same = control.done.token_ids == guarded.done.token_ids and control.released == guarded.released
    return f"\nThe same {len(guarded.done.token_ids)} tokens as without the guard: {'yes' if same else 'NO'}"


def _highest(run: Run) -> float:
    return max((check.harm_probability or 0.0 for check in run.checks), default=0.0)
