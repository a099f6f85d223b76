"""The parts of an answer as tokens, written as the sidecar's template writes an assistant's turn. Knows no model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from ada_guard.delta import Fragment, ToolCall
from ada_guard.session import Piece
from ada_guard.sidecar.channels import Move, Part
from ada_guard.sidecar.settled import SettledTokens
from ada_guard.sidecar.turn import Place, TurnForm, opened_block
from ada_guard.spec import ModelSpec

__all__ = ["RenderedTurn", "whole_call"]

_PLACES: dict[str, Place] = {"text": "text", "refusal": "text", "reasoning": "think", "tool_call": "call"}
_PLAIN_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
"""Ids that servers make up. Any other may be the generator's own words."""


def whole_call(part: Part) -> Fragment:
    """A tool call in one piece, as it is released."""
    call = part.call or ToolCall(index=0)
    return Fragment(text="".join(part.arguments), channel="tool_call", call=call)


class RenderedTurn:
    """Tokenises one answer, part by part. Each part is settled to its end before the next begins.

    Args:
        tokenizer: The sidecar's.
        spec: The sidecar's.
        prompt_end: What the prompt ends with.
        prefill: Text of the assistant's behind it.
    """

    def __init__(self, tokenizer: Any, spec: ModelSpec, *, prompt_end: str, prefill: str) -> None:
        self._tokenizer = tokenizer
        self._spec = spec
        self._prompt_end = prompt_end
        self._settled = SettledTokens(tokenizer, before=prompt_end)
        self._place: Place | None = None
        self._part: Part | None = None
        self._shown_name = ""
        self._uncovered: list[Fragment] = []
        if prefill:
            self._settled.follow(prefill)
            self._place = "text"

    @cached_property
    def _form(self) -> TurnForm:
        # Not before it is needed: most answers are nothing but text.
        return TurnForm.observed(self._tokenizer, self._spec)

    def go_on(self, part: Part | None, *, behind: str) -> None:
        """Begins in the middle of an answer.

        Args:
            part: What is being written, and is in the context so far.
            behind: What the context ends with.
        """
        self._settled.follow(behind)
        self._part = part
        self._place = "text" if part is None else _PLACES[part.channel]
        self._shown_name = (part and part.call and part.call.name) or ""

    def read(self, move: Move) -> list[Piece]:
        """Takes the next text of a part, or its end."""
        part = move.part
        pieces = [] if part is self._part else self._begin(part)
        pieces += self._out(self._settled.push(move.text), part)
        return pieces + self._end(part) if move.ends else pieces

    def finish(self) -> list[Piece]:
        """What closes the last part, and what no token covers."""
        pieces = self._control(self._form.call.end) if self._place == "call" else []
        if self._uncovered:
            pieces.append(Piece(others=tuple(self._uncovered), is_token=False))
            self._uncovered = []
        return pieces

    def _begin(self, part: Part) -> list[Piece]:
        following = _PLACES[part.channel]
        if self._place is None:
            opened = opened_block(self._tokenizer, self._prompt_end)
            self._place = self._form.place_behind(self._prompt_end) if opened else "start"
        plain = following == "text" and self._place in ("start", "text")
        pieces = [] if plain else self._control(self._form.leading(self._place, following))
        self._part, self._place = part, following
        if part.call is not None:
            self._shown_name = part.call.name or ""
            pieces += self._out([*self._settled.push(self._shown_name), *self._settled.flush()], part)
            pieces += self._control(self._form.call.middle)
        return pieces

    def _end(self, part: Part) -> list[Piece]:
        self._part = None
        pieces: list[Piece] = []
        for text in self._unseen(part.call):
            pieces += self._out(self._settled.push(f"\n{text}"), part)
        pieces += self._out(self._settled.flush(), part)
        if part.call is not None:
            whole = whole_call(part)
            last = next((n for n in reversed(range(len(pieces))) if pieces[n].is_token), None)
            if last is None:
                self._uncovered.append(whole)
            else:
                pieces[last] = Piece(others=(*pieces[last].others, whole), token_id=pieces[last].token_id)
        return pieces

    def _unseen(self, call: ToolCall | None) -> list[str]:
        """What is released with a call and is not in the context yet: a name that went on, an id that is a text."""
        if call is None:
            return []
        name = [call.name] if call.name and call.name != self._shown_name else []
        return [*name, *([call.id] if call.id and not _PLAIN_ID.fullmatch(call.id) else [])]

    def _control(self, text: str) -> list[Piece]:
        return self._released(Piece(token_id=i) for i in self._settled.control(text))

    def _out(self, pieces: Iterable[Piece], part: Part) -> list[Piece]:
        """The tokens of a part with what each of them releases."""
        return self._released(_of_channel(piece, part) for piece in pieces)

    def _released(self, pieces: Iterable[Piece]) -> list[Piece]:
        """The tokens among the pieces; what the others hold goes with the next token."""
        out: list[Piece] = []
        for piece in pieces:
            if not piece.is_token:
                text = [Fragment(text=piece.text)] if piece.text else []
                self._uncovered += [*piece.others, *text]
            elif self._uncovered:
                others, self._uncovered = (*self._uncovered, *piece.others), []
                out.append(Piece(text=piece.text, others=others, token_id=piece.token_id))
            else:
                out.append(piece)
        return out


def _of_channel(piece: Piece, part: Part) -> Piece:
    if part.channel == "text" or not piece.text:
        return piece
    # A tool call is released in one piece, when all of it is there.
    others = () if part.call is not None else (Fragment(text=piece.text, channel=part.channel),)
    return Piece(others=others, token_id=piece.token_id, is_token=piece.is_token)
