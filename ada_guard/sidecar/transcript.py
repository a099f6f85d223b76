"""What a stream has said so far: what of it a sidecar server has been given, and when to give it more. Knows no socket.

Holding text back from the server changes nothing but the moment: depths, pieces and verdicts do not depend on how a
stream is split. So it is sent when a check may have become due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from ada_guard.delta import Channel, Fragment, ToolCall
from ada_guard.errors import CheckError
from ada_guard.policy import Schedule
from ada_guard.session import Piece
from ada_guard.sidecar.channels import merged_call
from ada_guard.sidecar.questions import whole_text
from ada_guard.sidecar.wire import FragmentMessage, Part

__all__ = ["Transcript"]

MAX_UNSENT_TOKENS = 512
MAX_BYTES_WITHOUT_IDS = 256
"""With more text than that since the last token id, the source gives no more of them."""
FIRST_BYTES_PER_TOKEN = 4.0
FIRST_TAIL_BYTES = 4.0
REMEMBERED_TOKENS = 10
"""Over how many tokens their length is averaged: prose turns into code, one language into another."""
MARGIN = 1.1
"""How much more text is waited for than a check should need: sent too early, it is a round trip without a check.

On plain text 1.1 gives 1.4 round trips a check, and holds back one token more than 1.0 with its 1.6."""
ORDERED_AHEAD = 4
"""Checks that are ordered ahead. More would be wasted where an early one flags."""

Lane: TypeAlias = tuple[Channel, int | None]


@dataclass(slots=True, eq=False)
class _Push:
    fragments: list[Fragment] = field(repr=False)
    token_ids: list[int] = field(repr=False)


class Transcript:
    """Everything a stream has said, kept until it is closed, so that a lost session can be made again.

    Args:
        schedule: When checks will be due.
        coalesce: Whether to wait with text until one may be. False: everything is sent at once.
    """

    def __init__(self, schedule: Schedule, *, coalesce: bool = True) -> None:
        self._schedule = schedule
        self._coalesce = coalesce
        self._pushes: list[_Push] = []
        self._half: Fragment | None = None
        self._owed: dict[Lane, list[str]] = {}
        self._settled: dict[Lane, int] = {}
        self._settled_pushes = 0
        self._calls: dict[int, ToolCall] = {}
        self._calls_done: set[int] = set()
        self._owed_bytes = 0
        self._bytes_per_token = FIRST_BYTES_PER_TOKEN
        self._tail_bytes = FIRST_TAIL_BYTES
        self._ids = 0
        self._bytes_without_ids = 0
        self._tail_ids = 0
        self._given: list[int | None] = []
        self.sent = 0
        self.generated_tokens = 0

    @property
    def end(self) -> int:
        """Place behind the last push: as much as there is to be sent."""
        return len(self._pushes)

    def add(self, fragments: Sequence[Fragment], token_ids: Sequence[int] = ()) -> None:
        """Takes what the stream produced."""
        whole = [self._whole(fragment) for fragment in fragments]
        self._put([piece for pieces in whole for piece in pieces], token_ids)

    def finish(self) -> None:
        """Takes half a character that the stream has ended with."""
        half, self._half = self._half, None
        if half is not None:
            self._put([replace(half, text="\ufffd")], ())

    def is_time(self) -> bool:
        """Whether a check may have become due with what is not sent yet."""
        if self.sent == len(self._pushes):
            return False
        ahead = self._expected_tokens()
        if not self._coalesce or ahead > MAX_UNSENT_TOKENS:
            return True
        return self._schedule.next_due(self.generated_tokens) <= self.generated_tokens + ahead

    def due_next(self) -> list[int]:
        """The next depths, in generated tokens, at which checks may become due with what there is."""
        known = self.generated_tokens
        reach = min(max(self._ids, known + self._owed_bytes), known + MAX_UNSENT_TOKENS)
        return self._due_depths(known, reach, most=ORDERED_AHEAD)

    def due_after(self, depth: int) -> list[int]:
        """Further depths, in generated tokens, that are due in what is settled already."""
        return self._due_depths(depth, self.generated_tokens, most=ORDERED_AHEAD - 1)

    def parts(self, start: int, end: int) -> list[Part]:
        """Pushes as they are sent: those without ids joined, those with ids apart, as each belongs to its text."""
        merged: list[_Push] = []
        for push in self._pushes[start:end]:
            if merged and not push.token_ids and not merged[-1].token_ids:
                _join(merged[-1].fragments, push.fragments)
            else:
                merged.append(_Push(list(push.fragments), push.token_ids))
        return [
            Part(fragments=[FragmentMessage.of(each) for each in push.fragments], token_ids=list(push.token_ids))
            for push in merged
        ]

    def settle(self, pieces: Sequence[Piece], *, from_start: bool) -> list[Piece]:
        """Takes the server's pieces; returns those that are new.

        Args:
            pieces: As the server gave them.
            from_start: Whether it was given everything again.

        Raises:
            CheckError: They are not those of this stream.
        """
        if from_start:
            known = len(self._given)
            if [piece.token_id for piece in pieces[:known]] != self._given:
                raise CheckError("the sidecar server reads the stream otherwise than it did before")
            pieces = pieces[known:]
        owed_bytes = self._owed_bytes
        pieces = [replace(piece, others=tuple(self._own(each) for each in piece.others)) for piece in pieces]
        self._take([fragment for piece in pieces for fragment in (*piece.others, Fragment(text=piece.text))])
        self._given += [piece.token_id for piece in pieces]
        tokens = sum(piece.is_token for piece in pieces)
        self.generated_tokens += tokens
        if tokens:
            weight = tokens / (tokens + REMEMBERED_TOKENS)
            now = (owed_bytes - self._owed_bytes) / tokens
            self._bytes_per_token += weight * (min(max(now, 1.0), 8.0) - self._bytes_per_token)
        if pieces:
            self._tail_bytes, self._tail_ids = float(self._owed_bytes), max(self._ids - self.generated_tokens, 0)
        return list(pieces)

    @property
    def owes(self) -> bool:
        """Whether something of the stream is not settled."""
        return any(self._owed.values()) or self._calls.keys() != self._calls_done

    def stand_ins(self, *, final: bool = False) -> list[Piece]:
        """What is not settled as pieces up to the next depth that is due, for when no server can say better.

        They make a check due, so that the policy decides what becomes of text that cannot be checked. Tool calls wait
        for the end of the stream, and come whole.

        Args:
            final: Whether the stream has ended.
        """
        rest = self._rest()
        if final:
            rest += [
                Fragment(text="".join(self._owed.get(("tool_call", index), ())), channel="tool_call", call=call)
                for index, call in self._calls.items()
                if index not in self._calls_done
            ]
        if not rest:
            return []
        tokens = self._schedule.next_due(self.generated_tokens) - self.generated_tokens
        tokens = tokens if tokens <= MAX_UNSENT_TOKENS else 1
        text_only = all(fragment.channel == "text" for fragment in rest)
        last = Piece(text="".join(each.text for each in rest)) if text_only else Piece(others=tuple(rest))
        return self.settle([*[Piece()] * (tokens - 1), last], from_start=False)

    def forget(self) -> None:
        """Drops all text."""
        self._pushes.clear()
        self._owed.clear()
        self._given.clear()
        self._half = None
        self.sent = 0

    # -- inside ---------------------------------------------------------------------------------------------------

    def _put(self, fragments: list[Fragment], token_ids: Sequence[int]) -> None:
        if not fragments and not token_ids:
            return
        for fragment in fragments:
            lane = _lane(fragment)
            if lane[1] is not None:
                self._calls[lane[1]] = merged_call(self._calls.get(lane[1]), fragment.call or ToolCall(index=0))
            if fragment.text:
                self._owed.setdefault(lane, []).append(fragment.text)
            self._owed_bytes += len(fragment.text.encode())
        self._ids += len(token_ids)
        size = sum(len(fragment.text.encode()) for fragment in fragments)
        self._bytes_without_ids = 0 if token_ids else self._bytes_without_ids + size
        last = self._pushes[-1] if len(self._pushes) > self.sent else None
        if last is not None and not last.token_ids and not token_ids:
            _join(last.fragments, fragments)
        else:
            joined: list[Fragment] = []
            _join(joined, fragments)
            self._pushes.append(_Push(joined, list(token_ids)))

    def _whole(self, fragment: Fragment) -> list[Fragment]:
        """The fragment without half a character at its end, which JSON could not carry; it waits for the other half."""
        half, self._half = self._half, None
        text, before = fragment.text, list[Fragment]()
        if half is not None and _lane(half) == _lane(fragment):
            text = half.text + text
        elif half is not None:
            before = [replace(half, text="\ufffd")]
        if text and "\ud800" <= text[-1] <= "\udbff":
            self._half = replace(fragment, text=text[-1])
            text = text[:-1]
        text = whole_text(text)
        # A fragment without text may say that a tool call begins.
        return [*before, replace(fragment, text=text)] if text or fragment.call else before

    def _own(self, fragment: Fragment) -> Fragment:
        """The fragment as the stream itself names its call: what is executed must be what the source said."""
        index = _lane(fragment)[1]
        if index is None:
            return fragment
        if index not in self._calls or index in self._calls_done:
            raise CheckError("the sidecar server gave back a tool call that it was not given")
        self._calls_done.add(index)
        return replace(fragment, call=self._calls[index])

    def _take(self, fragments: list[Fragment]) -> None:
        """Notes as settled what the server says is. Its text must be the stream's own: nobody else's is ever shown."""
        by_lane: dict[Lane, list[str]] = {}
        for fragment in fragments:
            by_lane.setdefault(_lane(fragment), []).append(fragment.text)
        texts = {lane: "".join(pieces) for lane, pieces in by_lane.items()}
        owed = {lane: "".join(self._owed.get(lane, ())) for lane in texts}
        if any(not owed[lane].startswith(text) for lane, text in texts.items()):
            raise CheckError("the sidecar server gave back other text than it was given")
        for lane, text in texts.items():
            self._owed[lane] = [rest] if (rest := owed[lane][len(text) :]) else []
            self._settled[lane] = self._settled.get(lane, 0) + len(text)
            self._owed_bytes -= len(text.encode())

    def _rest(self) -> list[Fragment]:
        """What is not settled, in order, tool calls left out. What has been settled is not looked at another time."""
        self.sent = len(self._pushes)  # nothing is sent any more, so that no push grows
        settled, rest = dict(self._settled), list[Fragment]()
        for at, push in enumerate(self._pushes[self._settled_pushes :], self._settled_pushes + 1):
            for fragment in push.fragments:
                if fragment.channel == "tool_call":
                    continue
                lane = _lane(fragment)
                skipped = min(settled.get(lane, 0), len(fragment.text))
                settled[lane] = settled.get(lane, 0) - skipped
                if fragment.text[skipped:]:
                    rest.append(replace(fragment, text=fragment.text[skipped:]))
            if not rest:
                self._settled, self._settled_pushes = dict(settled), at
        return rest

    def _expected_tokens(self) -> int:
        """How many tokens would settle if everything were sent now, by this stream's own length of a token."""
        if self._ids and self._bytes_without_ids <= MAX_BYTES_WITHOUT_IDS:
            return self._ids - self.generated_tokens - self._tail_ids
        return int((self._owed_bytes - self._tail_bytes) / (self._bytes_per_token * MARGIN))

    def _due_depths(self, behind: int, up_to: int, *, most: int) -> list[int]:
        due: list[int] = []
        while len(due) < most and (behind := self._schedule.next_due(behind)) <= up_to:
            due.append(behind)
        return due


def _lane(fragment: Fragment) -> Lane:
    if fragment.channel != "tool_call":
        return fragment.channel, None
    return fragment.channel, 0 if fragment.call is None else fragment.call.index


def _join(to: list[Fragment], fragments: Sequence[Fragment]) -> None:
    """Appends fragments, adding to the last one what belongs to the same channel and call."""
    for fragment in fragments:
        if to and _lane(to[-1]) == _lane(fragment) and _says_no_more(fragment.call, to[-1].call):
            to[-1] = replace(to[-1], text=to[-1].text + fragment.text)
        else:
            to.append(fragment)


def _says_no_more(call: ToolCall | None, known: ToolCall | None) -> bool:
    """Whether all that is told of a tool call is known: sources name it once, or each time."""
    if call is None or known is None:
        return call is known
    return call.id in (None, known.id) and call.name in (None, known.name)
