"""Takes a prefill off an answer that repeats it. Knows no socket."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ada_guard.delta import Delta, Fragment

__all__ = ["Echo"]


class Echo:
    """Holds the text of each choice back while it may still be the prefill; text that is none passes unchanged.

    Args:
        prefill: What the server repeats.
        choices: Number of choices.
    """

    def __init__(self, prefill: str, *, choices: int = 1) -> None:
        self._prefill = prefill
        self._held: list[str | None] = [""] * choices

    def strip(self, delta: Delta) -> Iterator[Delta]:
        """The delta without what belongs to the prefill, and without token ids, which cannot be told apart."""
        fragments: list[Fragment] = []
        for fragment in delta.fragments:
            if fragment.channel == "text":
                text = self._take(delta.choice, fragment.text)
                fragments += [Fragment(text=text)] if text else []
            else:
                fragments.append(fragment)
        if delta.finish_reason is not None:
            fragments += self._rest(delta.choice)
        stripped = replace(delta, fragments=tuple(fragments), token_ids=())
        if stripped != Delta(choice=delta.choice):
            yield stripped

    def flush(self) -> Iterator[Delta]:
        """What is still held where a server ends without saying so."""
        for choice in range(len(self._held)):
            if rest := self._rest(choice):
                yield Delta(fragments=tuple(rest), choice=choice)

    def _take(self, choice: int, text: str) -> str:
        held = self._held[choice]
        if held is None:
            return text
        held += text
        if held.startswith(self._prefill):
            self._held[choice] = None
            return held[len(self._prefill) :]
        if self._prefill.startswith(held):
            self._held[choice] = held
            return ""
        self._held[choice] = None
        return held

    def _rest(self, choice: int) -> list[Fragment]:
        held, self._held[choice] = self._held[choice], None
        return [Fragment(text=held)] if held else []
