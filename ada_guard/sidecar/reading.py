"""What a pool does for one stream, as generators of rows: reading its tokens, and checking behind them. Torch-free.

A generator yields a `Row` for each forward pass it needs and is sent the `RowResult`. Tokens that a row keeps are in
the sequence from then on; the header and a lookahead are fed behind them and simply not kept.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from ada_guard.checking import Ask, AskLookahead, AskProbe, CheckContext, Checker, Lookahead
from ada_guard.errors import CheckError
from ada_guard.verdict import Verdict

if TYPE_CHECKING:
    from ada_guard.local.model import LocalModel

__all__ = ["Rows", "Tokens", "Wanted", "checking", "reading"]

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Tokens:
    """The tokens of one stream, and how many of them the model has read.

    Attributes:
        ids: All of them; grows while the stream runs.
        read: How many are in the KV cache; 0 again after an eviction.
    """

    ids: list[int] = field(repr=False)
    read: int = 0

    def fed(self, row: Wanted) -> None:
        """Notes that a row is in the cache. What was read behind its beginning is no longer there."""
        self.read = min(self.read, row.start) + row.keep


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A row to be fed: `ids` behind the first `start` tokens, of which the first `keep` belong to the stream."""

    start: int
    ids: Sequence[int] = field(repr=False)
    keep: int = 0
    probe_at: int | None = None
    wants_next: bool = False

    @property
    def end(self) -> int:
        """Places in the cache that it needs."""
        return self.start + len(self.ids)


Rows: TypeAlias = Generator[Wanted, Any, T]


def reading(tokens: Tokens, target: int, chunk: int) -> Rows[None]:
    """Reads the tokens up to a target in pieces, so that nobody waits for a long prompt of somebody else's."""
    while tokens.read < target:
        ids = tokens.ids[tokens.read : min(tokens.read + chunk, target)]
        yield Wanted(start=tokens.read, ids=ids, keep=len(ids))


def checking(
    model: LocalModel, tokens: Tokens, target: int, checker: Checker, context: CheckContext, chunk: int
) -> Rows[Verdict]:
    """Runs a checker behind the first `target` tokens. The last of them ride with the header.

    Raises:
        CheckError: The model's numbers are not finite, it has no probe, or the checker returned no verdict.
    """
    yield from reading(tokens, target - chunk, chunk)
    header = _Header(model, tokens, target, looks_ahead=AskLookahead in checker.asks)
    asking = checker.check(context)
    said: float | Lookahead | None = None
    while True:
        try:
            ask: Ask = asking.send(said)
        except StopIteration as stop:
            if not isinstance(stop.value, Verdict):
                raise CheckError("the checker returned no verdict") from None
            return stop.value
        if isinstance(ask, AskProbe):
            said = yield from header.harm_probability()
        else:
            said = yield from header.lookahead(ask)


class _Header:
    """The Safety Tokens behind the first `target` tokens."""

    def __init__(self, model: LocalModel, tokens: Tokens, target: int, *, looks_ahead: bool) -> None:
        spec = model.spec
        self._model = model
        self._tokens = tokens
        self._target = target
        # One pass with the whole header serves both checkers where the probe's tokens are its beginning.
        self._looks_ahead = looks_ahead
        self._first = spec.rethink.ids if looks_ahead and spec.probe_is_prefix else spec.probe.ids
        self._harm: float | None = None
        self._next: Any = None

    def harm_probability(self) -> Rows[float]:
        """P(harmful) at the probe's token."""
        if self._model.probe is None:
            raise CheckError("the model has no probe")
        if self._harm is None:
            yield from self._feed(self._first)
        assert self._harm is not None
        return self._harm

    def lookahead(self, ask: AskLookahead) -> Rows[Lookahead]:
        """Greedy tokens behind the whole header."""
        rethink = self._model.spec.rethink.ids
        if self._next is None:
            yield from self._feed(rethink)
        result, self._next = self._next, None
        tokenizer, eos = self._model.tokenizer, self._model.eos_ids
        tokens: list[int] = []
        text = ""
        while len(tokens) < ask.max_tokens:
            if not result.finite:
                raise CheckError("the lookahead's logits are not finite")
            if result.next_token in eos:
                return Lookahead(text=text, tokens=len(tokens), ended=True)
            tokens.append(result.next_token)
            text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if len(tokens) == ask.max_tokens or not ask.undecided(text):
                break
            start = self._target + len(rethink) + len(tokens) - 1
            result = yield Wanted(start=start, ids=tokens[-1:], wants_next=True)
        return Lookahead(text=text, tokens=len(tokens), ended=False)

    def _feed(self, ids: Sequence[int]) -> Rows[None]:
        """Feeds a form of the header, and with it what the model has not read yet."""
        spec, tokens = self._model.spec, self._tokens
        # A sequence that has been read further (a check at an earlier depth) is simply not seen beyond the target.
        start = min(tokens.read, self._target)
        new = tokens.ids[start : self._target]
        reads_probe = self._model.probe is not None and tuple(ids[: len(spec.probe.ids)]) == spec.probe.ids
        whole = self._looks_ahead and tuple(ids) == spec.rethink.ids
        result = yield Wanted(
            start=start,
            ids=[*new, *ids],
            keep=len(new),
            probe_at=len(new) + len(spec.probe.ids) - 1 if reads_probe else None,
            wants_next=whole,
        )
        if reads_probe:
            self._harm = result.harm_probability
        self._next = result if whole else None
