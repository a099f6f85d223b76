"""A sidecar whose checks are made by the endpoint's own model, on the server that writes the stream. Torch-free.

The check is a request of its own: prompt, answer so far and Safety Tokens as token ids, a few greedy tokens. The
server's prefix cache has most of it already. Only rethink can be asked: no endpoint shows a probe its hidden states.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ada_guard.checking import Ask, AskLookahead, AskProbe, Calibration, CheckContext, Checker, Lookahead
from ada_guard.delta import Fragment
from ada_guard.errors import CheckError, ConfigError, GenerationError
from ada_guard.policy import Schedule
from ada_guard.session import Piece
from ada_guard.sidecar.answer import AnswerTokens
from ada_guard.sidecar.endpoint_features import EndpointFeatures, cached_tokens, probe_features
from ada_guard.sidecar.endpoint_tokens import EndpointTokens
from ada_guard.sidecar.protocol import Conversation
from ada_guard.sources import Endpoint, EndpointStream, Timeouts
from ada_guard.spec import ModelSpec
from ada_guard.steps import Steps
from ada_guard.verdict import Verdict

if TYPE_CHECKING:
    from ada_guard.sidecar.view import View

__all__ = ["EndpointRethink", "LookaheadCost", "SelfChecked"]

CHECK_TIMEOUT_S = 60.0
_PROMPT_END_TOKENS = 64
"""As much of a prompt as says where the answer begins: in the open, or in a block of thinking."""
_NO_PROBE = "a probe needs a companion sidecar: an endpoint's own model can only be asked by rethink"


@dataclass(frozen=True, slots=True, kw_only=True)
class LookaheadCost:
    """What one lookahead took.

    Attributes:
        prompt_tokens: Sent, Safety Tokens included.
        cached_tokens: Of those, the ones the server had in its prefix cache; None where it did not say so, as where the
            response was closed because the check was decided.
        lookahead_tokens: Generated.
        ms: From the request to its end, in milliseconds.
    """

    prompt_tokens: int
    cached_tokens: int | None
    lookahead_tokens: int
    ms: float


class EndpointRethink:
    """Asks the endpoint's own model to judge its answers (ADA-RK).

    Args:
        endpoint: The endpoint; ``/v1/completions`` of its server is asked, whichever API the stream comes from.
        tokenizer: The endpoint's own: a tokenizer of transformers, its id or its folder.
        spec: Safety Tokens; derived from the tokenizer's chat template if None.
        cache_salt: That of the streams' requests, for those that name none: with another one the server shares no
            prefix.
        priority: Of the checks, for a server that schedules by priority; in vLLM lower comes first.
        check_timeout_s: Longest time a lookahead may take; then the check counts as not made.

    Raises:
        ConfigError: No such tokenizer, or no chat template.
        MissingExtraError: transformers is not installed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        tokenizer: Any,
        *,
        spec: ModelSpec | None = None,
        cache_salt: str | None = None,
        priority: int | None = None,
        check_timeout_s: float = CHECK_TIMEOUT_S,
    ) -> None:
        self.tokens = EndpointTokens(tokenizer, spec)
        self.features: EndpointFeatures | None = None
        connect_s = endpoint.timeouts.connect_s
        timeouts = Timeouts(connect_s=connect_s, read_s=check_timeout_s, total_s=check_timeout_s)
        self._endpoint = replace(endpoint, api="completions", timeouts=timeouts)
        asked = {"cache_salt": cache_salt, "priority": priority}
        self._asked = {name: value for name, value in asked.items() if value is not None}

    @property
    def identity(self) -> str:
        """The endpoint's."""
        return self._endpoint.identity

    @property
    def name(self) -> str:
        """The model's name at the endpoint."""
        return self._endpoint.model

    @property
    def reads_source_ids(self) -> bool:
        """Whether the endpoint gives ids: they are those of the tokenizer given here."""
        return self.features is not None and self.features.returns_token_ids

    def detect(self) -> Steps[EndpointFeatures]:
        """Asks the endpoint, once, what it takes. `connect` and `open` do it where it was not done before.

        Raises:
            ConfigError: It cannot be used for self-checks; the line says why.
            CheckError: It cannot be reached, or fails.
        """
        if self.features is None:
            try:
                self.features = yield from probe_features(
                    self._endpoint, self.tokens, extensions=self._extensions(), asked=self._asked
                )
            except GenerationError as error:
                raise CheckError(str(error)) from None
        return self.features

    def connect(self) -> Steps[Calibration | None]:
        """Makes sure that the endpoint can be used; see `detect`. There is no probe."""
        yield from self.detect()
        return None

    def open(self, conversation: Conversation, *, asks: frozenset[type[Ask]], schedule: Schedule) -> Steps[SelfChecked]:
        """Begins to follow a stream. The server reads its prompt for the stream itself.

        Raises:
            ConfigError: A probe is to be asked, or the conversation cannot be encoded.
            CheckError: The endpoint cannot be reached.
        """
        del schedule
        if AskProbe in asks:
            raise ConfigError(_NO_PROBE)
        yield from self.detect()
        return SelfChecked(self, self.tokens.view(conversation), conversation.cache_salt)

    def lookahead(
        self, ids: Sequence[int], ask: AskLookahead, *, cache_salt: str | None = None
    ) -> Steps[tuple[Lookahead, LookaheadCost]]:
        """Greedy tokens behind `ids` and the Safety Tokens. The response is closed as soon as enough is known.

        Raises:
            CheckError: It could not be made.
        """
        features = yield from self.detect()
        prompt = [*ids, *self.tokens.spec.rethink.ids]
        text = prompt if features.prompt == "ids" else self.tokens.as_text(prompt, form=features.prompt)
        if text is None:
            raise CheckError("the endpoint takes text only, and this context has no text that stands for its tokens")
        fields = {**(self._extensions() if features.extensions else {}), **self._asked}
        if cache_salt is not None:
            fields["cache_salt"] = cache_salt
        started = time.perf_counter()
        try:
            stream = self._endpoint.open(prompt=text, max_tokens=ask.max_tokens, temperature=0, extra_body=fields)
            ahead = yield from self._read(stream, ask)
        except (ConfigError, GenerationError) as error:
            raise CheckError(str(error)) from None
        cost = LookaheadCost(
            prompt_tokens=len(prompt),
            cached_tokens=cached_tokens(stream.usage),
            lookahead_tokens=ahead.tokens,
            ms=(time.perf_counter() - started) * 1000.0,
        )
        return ahead, cost

    def close(self) -> Steps[None]:
        """Closes the connections."""
        yield from self._endpoint.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _extensions(self) -> Mapping[str, Any]:
        """Fields of vLLM and SGLang. A server's defaults (a model's repetition penalty) are not those of a check."""
        return {
            "return_token_ids": True,
            "skip_special_tokens": True,
            "repetition_penalty": 1.0,
            "stop_token_ids": sorted(self.tokens.end_ids),
        }

    def _read(self, stream: EndpointStream, ask: AskLookahead) -> Steps[Lookahead]:
        end_ids, end_text = self.tokens.end_ids, self.tokens.spec.end_of_turn.strip()
        text, tokens, reason, decided, end_seen = "", 0, None, False, False
        try:
            while (delta := (yield from stream.pull())) is not None:
                text += "".join(fragment.text for fragment in delta.fragments)
                # Where the server gives no ids, a chunk is taken for a token.
                tokens += sum(i not in end_ids for i in delta.token_ids) if delta.token_ids else bool(delta.fragments)
                end_seen = end_seen or any(i in end_ids for i in delta.token_ids)
                reason = delta.finish_reason or reason
                if end_text and end_text in text:  # a server that shows the end of a turn, and may write on behind it
                    text, reason = text.partition(end_text)[0], "stop"
                    break
                decided = tokens > ask.max_tokens or (bool(delta.fragments) and not ask.undecided(text))
                if decided:
                    break
        finally:
            yield from stream.close()
        # What stands below would all count as no refusal, which nobody has seen.
        if not decided:
            if reason not in ("stop", "length"):
                raise CheckError("the endpoint ended the lookahead for a reason that is neither stop nor length")
            if reason == "length" and tokens < ask.max_tokens:
                raise CheckError("the endpoint broke the lookahead off: its context is full, or it caps max_tokens")
            if not text.strip() and not end_seen:  # a model that ends its turn at once is told from a broken server
                raise CheckError("the endpoint answered the lookahead with nothing")
        return Lookahead(text=text, tokens=tokens, ended=reason == "stop")


class SelfChecked:
    """One stream's place in an `EndpointRethink`.

    Attributes:
        cost: What the last lookahead took; None before the first.
    """

    def __init__(self, sidecar: EndpointRethink, view: View, cache_salt: str | None = None) -> None:
        prompt, tokens = view.prompt, sidecar.tokens
        self.cost: LookaheadCost | None = None
        self.prompt_tokens = len(prompt.ids)
        self.prefill_tokens = len(prompt.prefill_ids)
        self.prefill_text = prompt.prefill_text
        self._sidecar = sidecar
        self._cache_salt = cache_salt
        self._partial = view.partial
        self._ids = [*prompt.ids, *prompt.prefill_ids]
        self._tokens: AnswerTokens | None = AnswerTokens(
            tokens.tokenizer,
            tokens.spec,
            eos_ids=tokens.end_ids,
            prompt_end=tokens.shown(prompt.ids[-_PROMPT_END_TOKENS:]),
            prefill=prompt.prefill_text,
        )

    def push(self, fragments: Sequence[Fragment], token_ids: Sequence[int] = ()) -> Steps[list[Piece]]:
        """Takes what the stream produced and returns what it settled."""
        yield from ()
        return [] if self._tokens is None else self._kept(self._tokens.push(fragments, token_ids))

    def flush(self) -> Steps[list[Piece]]:
        """The last pieces, once the stream has ended."""
        yield from ()
        return [] if self._tokens is None else self._kept(self._tokens.flush())

    def check(self, checker: Checker, context: CheckContext) -> Steps[Verdict]:
        """Runs a checker behind exactly the first ``context.depth`` tokens, prefill included.

        Raises:
            CheckError: It could not be made.
        """
        target = self.prompt_tokens + context.depth
        if self._tokens is None or target > len(self._ids):
            raise CheckError("the stream is closed, or shorter than the depth to be checked")
        ids = self._ids[:target]
        checking, said = checker.check(context), None
        while True:
            try:
                ask = checking.send(said)
            except StopIteration as stop:
                if not isinstance(stop.value, Verdict):
                    raise CheckError("the checker returned no verdict") from None
                verdict = stop.value
                return replace(verdict, partial_view=True) if self._partial else verdict
            if not isinstance(ask, AskLookahead):
                raise CheckError(_NO_PROBE)
            said, self.cost = yield from self._sidecar.lookahead(ids, ask, cache_salt=self._cache_salt)

    def ahead_ms(self) -> float:
        """Nothing is done ahead."""
        return 0.0

    def close(self) -> Steps[None]:
        """Forgets the text. May be called twice. A lookahead in progress closes its own response."""
        yield from ()
        self._tokens = None
        self._ids.clear()

    def _kept(self, pieces: list[Piece]) -> list[Piece]:
        self._ids += [piece.token_id for piece in pieces if piece.is_token and piece.token_id is not None]
        return pieces
