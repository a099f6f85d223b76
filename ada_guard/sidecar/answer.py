"""The fragments of an answer as tokens of the sidecar, and what each of them allows to be released. Knows no model.

The sidecar sees an answer as its own template writes one: what the template puts around reasoning and tool calls is
control, everything that the generator wrote is plain text. A tool call is released whole, and only once all of it is
in the context: no part of one can be taken for a call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ada_guard.delta import Fragment
from ada_guard.errors import CheckError
from ada_guard.session import Piece
from ada_guard.sidecar.channels import Move, Order
from ada_guard.sidecar.escapes import Unescaping, unescaped
from ada_guard.sidecar.rendered import RenderedTurn, whole_call
from ada_guard.sidecar.settled import SettledTokens
from ada_guard.spec import ModelSpec

__all__ = ["AnswerTokens"]

_WAITING_CHARACTERS = 256
"""Text without ids that is held for an id to come. With more of it the ids have ended, and it is tokenised."""
_RECENT_IDS = 64


class AnswerTokens:
    """Turns a stream's fragments into settled pieces.

    Where the first delta with content has ids, the ids are the tokens: a delta's fragments belong to its last id, and
    text without ids waits for the next one. Otherwise, and from where the ids end, the text is tokenised here; so are
    arguments of a tool call whose ids only spell out escaped characters, behind those.

    Args:
        tokenizer: The sidecar's.
        spec: The sidecar's.
        eos_ids: Ids that end a turn: neither fed nor counted.
        prompt_end: What the prompt ends with; by default what the spec says.
        prefill: Text of the assistant's that the prompt ends with.
    """

    def __init__(
        self,
        tokenizer: Any,
        spec: ModelSpec,
        *,
        eos_ids: Collection[int] = (),
        prompt_end: str | None = None,
        prefill: str = "",
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        if prompt_end is None:
            # Where the template has no generation prompt, the injected header ends as a prompt does.
            prompt_end = spec.generation_prompt + spec.prompt_suffix if spec.generation_prompt else spec.rethink.text
        self._turn = RenderedTurn(tokenizer, spec, prompt_end=prompt_end, prefill=prefill)
        self._order = Order()
        self._by_ids: bool | None = None
        self._without_id: list[Fragment] = []
        self._recent: deque[int] = deque(maxlen=_RECENT_IDS)

    def push(self, fragments: Sequence[Fragment], token_ids: Sequence[int] = ()) -> list[Piece]:
        """Adds fragments, with their ids where those are of the sidecar's own tokenizer.

        Raises:
            GenerationError: A tool call that was complete goes on.
            CheckError: The ids are not of the sidecar's tokenizer.
        """
        self._without_id += fragments
        if self._by_ids is None and (token_ids or any(fragment.text for fragment in fragments)):
            self._by_ids = bool(token_ids)
        if self._by_ids is None:
            return []
        if not self._by_ids:
            return self._read(self._moves())
        ids = [i for i in token_ids if i not in self._eos_ids]
        if ids:
            return self._with_ids(ids)
        if sum(len(fragment.text) for fragment in self._without_id) <= _WAITING_CHARACTERS:
            return []
        return [*self._leave_ids(), *self._read(self._moves())]

    def flush(self) -> list[Piece]:
        """The rest, once no more will come. Only what no token covers, at the very end, comes without a token."""
        waiting = self._without_id
        # A call's name and id are no text that could be found among the last ids, and "{}" is one by chance.
        calls = self._order.current is not None and self._order.current.call is not None
        calls = calls or any(fragment.channel == "tool_call" for fragment in waiting)
        if self._by_ids and not (calls and waiting) and self._is_known("".join(each.text for each in waiting)):
            rest = self._fragments([*self._moves(), *self._order.flush()])
            if ids := self._decoded_again(rest):
                return [*(Piece(token_id=i) for i in ids[:-1]), Piece(others=tuple(rest), token_id=ids[-1])]
            return [Piece(others=tuple(rest), is_token=False)] if rest else []
        again = self._leave_ids() if self._by_ids else []
        return [*again, *self._read(self._moves()), *self._read(self._order.flush()), *self._turn.finish()]

    def _moves(self) -> Iterable[Move]:
        fragments, self._without_id = self._without_id, []
        return (move for fragment in fragments for move in self._order.push(fragment))

    def _read(self, moves: Iterable[Move]) -> list[Piece]:
        return [piece for move in moves for piece in self._turn.read(move)]

    def _with_ids(self, ids: Sequence[int]) -> list[Piece]:
        if not all(0 <= i < len(self._tokenizer) for i in ids):
            raise CheckError("the endpoint's token ids are not of the sidecar's tokenizer")
        self._recent.extend(ids)
        fragments = self._fragments(self._moves())
        ids = [*ids, *self._decoded_again(fragments)]
        # The text of a piece comes behind its other fragments: only the last one can be it.
        text = fragments.pop().text if fragments and fragments[-1].channel == "text" else ""
        return [*(Piece(token_id=i) for i in ids[:-1]), Piece(text=text, others=tuple(fragments), token_id=ids[-1])]

    def _fragments(self, moves: Iterable[Move]) -> list[Fragment]:
        """What the moves release, where ids cover them."""
        found: list[Fragment] = []
        for move in moves:
            if move.part.call is None and move.text:
                found.append(Fragment(text=move.text, channel=move.part.channel))
            elif move.part.call is not None and move.ends:
                found.append(whole_call(move.part))
        return found

    def _decoded_again(self, fragments: Sequence[Fragment]) -> list[int]:
        """Ids of the arguments of tool calls that hold escaped characters, as they will be when they run."""
        decoded = [(each.text, unescaped(each.text)) for each in fragments if each.call is not None]
        texts = [f"\n{read}" for written, read in decoded if read != written]
        if not texts:
            return []
        settled = SettledTokens(self._tokenizer)
        settled.follow(self._decoded())
        pieces = [*settled.push("".join(texts)), *settled.flush()]
        return [piece.token_id for piece in pieces if piece.token_id is not None]

    def _is_known(self, text: str) -> bool:
        """Whether text that came behind the last id is that of the last ids: servers hold text back, but no ids."""
        return self._decoded().endswith(text)

    def _leave_ids(self) -> list[Piece]:
        """From here on text is tokenised, behind what the ids have said."""
        self._by_ids = False
        part = self._order.current
        self._turn.go_on(part, behind=self._decoded())
        if part is None or part.call is None:
            return []
        written = "".join(part.arguments)
        read = Unescaping().push(written)
        return [] if written.startswith(read) else self._turn.read(Move(part=part, text=f"\n{read}"))

    def _decoded(self) -> str:
        ids = list(self._recent)
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
