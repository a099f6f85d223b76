"""A sidecar in this process that follows a stream which something else writes. Knows no source and no verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ada_guard.checking import LOOKAHEAD_TOKENS, Ask
from ada_guard.errors import AdaGuardError, CheckError
from ada_guard.local.context import CheckPass, LocalContext
from ada_guard.local.header import Header
from ada_guard.local.model import LocalModel
from ada_guard.local.plan import plan_reading
from ada_guard.prompt import Prompt
from ada_guard.session import Piece
from ada_guard.sidecar.settled import SettledTokens

__all__ = ["CompanionStream"]


class CompanionStream:
    """Keeps a KV cache beside a stream of text and checks it at exact depths.

    A check at depth d sees exactly the prompt and the first d settled ids, however the text was split.

    Args:
        model: The companion model.
        prompt: The conversation the stream answers.
        check_pass: How the header is fed.
    """

    def __init__(self, model: LocalModel, prompt: Prompt, *, check_pass: CheckPass = "fused") -> None:
        ids = [*prompt.ids, *prompt.prefill_ids]
        self._model = model
        self._reserve = len(model.spec.rethink.ids) + LOOKAHEAD_TOKENS
        model.require_room(len(ids), reserve=self._reserve)
        self.prefill_tokens = len(prompt.prefill_ids)
        self.prefill_text = prompt.prefill_text
        self._context: LocalContext | None = LocalContext(model, plan_reading(model.model, ids), check_pass=check_pass)
        self._settled = SettledTokens(model.tokenizer)
        self._ids: list[int] = []
        self._in_context = 0

    def push(self, text: str) -> list[Piece]:
        """Takes text of the stream and returns what it settled."""
        return self._kept(self._settled.push(text))

    def push_ids(self, pieces: Sequence[Piece]) -> list[Piece]:
        """Takes pieces whose ids are of this model's tokenizer."""
        return self._kept(list(pieces))

    def flush(self) -> list[Piece]:
        """The last pieces, once the stream has ended."""
        return self._kept(self._settled.flush())

    @contextmanager
    def reinjected(self, asks: frozenset[type[Ask]], *, depth: int) -> Iterator[Header]:
        """The Safety Tokens behind the prefill and the first settled ids, `depth` together.

        Raises:
            CheckError: The model failed, the text has outgrown its context, or the stream is closed.
        """
        if self._context is None:
            raise CheckError("the stream is closed")
        wanted = depth - self.prefill_tokens
        limit = self._model.context_tokens
        if limit is not None and self._context.ids.shape[1] + wanted - self._in_context + self._reserve > limit:
            raise CheckError("the answer has outgrown the sidecar's context")
        try:
            self._context.append(self._ids[self._in_context : wanted])
            self._in_context = wanted
            with self._context.reinjected(asks) as header:
                yield header
        except AdaGuardError:
            raise
        except Exception as error:  # noqa: BLE001  # the one boundary to torch
            raise CheckError(type(error).__name__) from None

    def close(self) -> None:
        """Frees the cache and forgets the text. May be called twice."""
        self._context = None
        self._ids.clear()
        self._settled = SettledTokens(self._model.tokenizer)

    def _kept(self, pieces: list[Piece]) -> list[Piece]:
        self._ids += [piece.token_id for piece in pieces if piece.is_token and piece.token_id is not None]
        return pieces
