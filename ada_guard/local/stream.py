"""A generation on a local model: the source of a guarded stream and its sidecar session in one object.

It owns the decode loop. A step samples a token without feeding it; the next forward pass, that of a check where one is
due, feeds it. The samplers, processors and stopping rules are those of transformers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import StoppingCriteriaList, StopStringCriteria
from transformers.generation.configuration_utils import GenerationMode

from ada_guard.checking import LOOKAHEAD_TOKENS, Ask, CheckContext, Checker, judge
from ada_guard.delta import Delta, Fragment, Usage
from ada_guard.errors import AdaGuardError, CheckError, ConfigError, GenerationError
from ada_guard.local.context import CheckPass, LocalContext
from ada_guard.local.header import Header
from ada_guard.local.model import LocalModel
from ada_guard.local.plan import plan_generation
from ada_guard.local.text import TextAssembler
from ada_guard.prompt import Prompt
from ada_guard.session import Piece
from ada_guard.steps import Steps, Work
from ada_guard.verdict import Verdict

__all__ = ["LocalStream"]

DEFAULT_MAX_NEW_TOKENS = 512


class LocalStream:
    """Generates token by token, and lets checks ride along.

    Args:
        model: The model.
        prompt: What to continue.
        check_pass: ``"fused"`` or ``"separate"``; see `LocalContext`.
        max_new_tokens: Most tokens to generate, cut to what the context holds.
        temperature: 0 for greedy; None leaves it to the model's generation config.
        stop: Strings that end the answer and are not part of it.
        seed: Of the stream's own random generator; None draws one.
        generation: Further fields of transformers' ``GenerationConfig``.

    Raises:
        ConfigError: Too long for the context, or a decoding method that a stream cannot have.
    """

    def __init__(
        self,
        model: LocalModel,
        prompt: Prompt,
        *,
        check_pass: CheckPass = "fused",
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        if check_pass not in ("fused", "separate"):
            raise ConfigError("check_pass must be fused or separate")
        self.prompt_tokens = len(prompt.ids)
        self.prefill_tokens = len(prompt.prefill_ids)
        self.prefill_text = prompt.prefill_text
        self.finish_reason: str | None = None
        self._local = model
        ids = [*prompt.ids, *prompt.prefill_ids]
        config, stop_strings = _generation_config(model, max_new_tokens, temperature, stop, generation or {})
        room = model.require_room(len(ids), reserve=len(model.spec.rethink.ids) + LOOKAHEAD_TOKENS)
        config.max_new_tokens = min(config.max_new_tokens, room) if room is not None else config.max_new_tokens
        try:
            plan = plan_generation(
                model.model,
                torch.tensor([ids], device=model.model.device),
                generation_config=config,
                attention_mask=torch.ones((1, len(ids)), dtype=torch.long, device=model.model.device),
            )
        except (ValueError, NotImplementedError, TypeError) as error:
            raise ConfigError(f"transformers refuses these generation settings ({type(error).__name__})") from None
        self._context: LocalContext | None = LocalContext(model, plan, check_pass=check_pass)
        self._plan = plan
        self._generated = 0
        self._ending: str | None = None
        self._eos_ids = _as_ids(plan.generation_config.eos_token_id)
        self._stop_strings = (
            StoppingCriteriaList([StopStringCriteria(tokenizer=model.tokenizer, stop_strings=list(stop_strings))])
            if stop_strings
            else None
        )
        self._assembler = TextAssembler(model.tokenizer, context_ids=prompt.prefill_ids, stop_strings=stop_strings)
        self._random: torch.Generator | None = None
        if plan.generation_config.do_sample:
            self._random = torch.Generator(device=model.model.device)
            self._random.manual_seed(seed) if seed is not None else self._random.seed()

    @property
    def context(self) -> LocalContext:
        """The sequence so far.

        Raises:
            GenerationError: The stream is closed.
        """
        if self._context is None:
            raise GenerationError("the stream is closed")
        return self._context

    @property
    def usage(self) -> Usage:
        """Counted here, so never estimated. The end of sequence is no token."""
        return Usage(prompt_tokens=self.prompt_tokens + self.prefill_tokens, completion_tokens=self._generated)

    def pull(self) -> Steps[Delta | None]:
        """Samples the next token; None once the model has ended its answer.

        Raises:
            GenerationError: The model failed. Carries the class name of the error only.
        """
        if self.finish_reason is not None:
            return None
        delta: Delta = yield Work(self._next_delta, self._local.worker)
        return delta

    def push(self, fragments: Sequence[Fragment], token_ids: Sequence[int] = ()) -> Steps[list[Piece]]:
        """The piece that a delta of this stream is."""
        yield from ()
        text = "".join(fragment.text for fragment in fragments)
        if token_ids:
            return [Piece(text=text, token_id=token_ids[0])]
        return [Piece(text=text, is_token=False)] if text else []

    def flush(self) -> Steps[list[Piece]]:
        """Nothing: what is left comes with the last delta."""
        yield from ()
        return []

    def check(self, checker: Checker, context: CheckContext) -> Steps[Verdict]:
        """Runs a checker at the current depth; see `reinjected`."""
        verdict: Verdict = yield Work(lambda: self._checked(checker, context), self._local.worker)
        return verdict

    def ahead_ms(self) -> float:
        """Nothing is done ahead."""
        return 0.0

    def close(self) -> Steps[None]:
        """Ends the generation, frees its cache and forgets its text. May be called twice."""
        yield from ()
        self._context = None
        self._assembler = TextAssembler(self._local.tokenizer)
        self.finish_reason = self.finish_reason or "stop"

    def _next_delta(self) -> Delta:
        try:
            return self._step() if self._ending is None else self._flush(self._ending)
        except AdaGuardError:
            raise
        except Exception as error:  # noqa: BLE001  # the one boundary to torch
            raise GenerationError(f"the model failed while generating: {type(error).__name__}") from None

    @contextmanager
    def reinjected(self, asks: frozenset[type[Ask]], *, depth: int) -> Iterator[Header]:
        """The Safety Tokens at the current depth; see `LocalContext.reinjected`.

        Raises:
            CheckError: The model failed. The stream itself is as it was before.
        """
        if depth != self.prefill_tokens + self._generated:
            raise CheckError("the stream is at another depth")
        try:
            with self.context.reinjected(asks) as header:
                yield header
        except AdaGuardError:
            raise
        except Exception as error:  # noqa: BLE001  # the one boundary to torch
            raise CheckError(type(error).__name__) from None

    def _checked(self, checker: Checker, context: CheckContext) -> Verdict:
        with self.reinjected(checker.asks, depth=context.depth) as header:
            return judge(checker, context, header.answer)

    def _step(self) -> Delta:
        context, plan = self.context, self._plan
        logits = context.next_logits()
        with torch.inference_mode():
            scores = plan.logits_processor(context.ids, logits.clone())
            if plan.generation_config.do_sample:
                probabilities = torch.nn.functional.softmax(scores, dim=-1)
                token = int(torch.multinomial(probabilities, num_samples=1, generator=self._random))
            else:
                token = int(scores.argmax(dim=-1))
        if token in self._eos_ids:
            return self._flush("stop")
        context.append([token])
        self._generated += 1
        text = self._assembler.push(token)
        with torch.inference_mode():
            if self._stop_strings is not None and bool(self._stop_strings(context.ids, None).all()):
                self._ending = "stop"
            elif bool(plan.stopping_criteria(context.ids, None).all()):
                self._ending = "length"
        return Delta(fragments=_fragments(text), token_ids=(token,))

    def _flush(self, finish_reason: str) -> Delta:
        self.finish_reason = finish_reason
        return Delta(fragments=_fragments(self._assembler.finish()), finish_reason=finish_reason)


def _fragments(text: str) -> tuple[Fragment, ...]:
    return (Fragment(text=text),) if text else ()


def _as_ids(value: Any) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset(int(i) for i in (value if isinstance(value, (list, tuple)) else [value]))


def _generation_config(
    model: LocalModel,
    max_new_tokens: int | None,
    temperature: float | None,
    stop: str | Sequence[str],
    generation: Mapping[str, Any],
) -> tuple[Any, tuple[str, ...]]:
    """The model's own generation config with the request's settings, and the stop strings, which we match ourselves."""
    config = copy.deepcopy(model.model.generation_config)
    if generation.get("num_return_sequences", 1) != 1:
        raise ConfigError("num_return_sequences must be 1: open one stream for each answer")
    try:
        unknown = config.update(**generation)
    except ValueError:
        raise ConfigError("transformers refuses these generation settings") from None
    if unknown:
        raise ConfigError(f"unknown generation setting: {', '.join(sorted(unknown))}")
    if temperature is not None:
        if not (isinstance(temperature, int | float) and math.isfinite(temperature) and temperature >= 0):
            raise ConfigError("temperature must be a number >= 0")
        config.do_sample = temperature > 0
        config.temperature = temperature if temperature > 0 else None
    if not config.do_sample:
        # Settings that only sampling reads: left in place, transformers warns about each of them.
        config.temperature = config.top_p = config.top_k = None
    if config.get_generation_mode() not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ConfigError("a guarded stream is greedy or sampled: beam search and assisted decoding cannot be streamed")
    if config.cache_implementation is not None:
        raise ConfigError("the guard needs transformers' dynamic cache: leave cache_implementation unset")
    wanted = max_new_tokens if max_new_tokens is not None else config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    if not isinstance(wanted, int) or wanted < 1:
        raise ConfigError("max_new_tokens must be a whole number >= 1")
    config.max_new_tokens, config.max_length = wanted, None
    if not isinstance(stop, str | Sequence):
        raise ConfigError("stop must be a text or a list of texts")
    strings = [stop] if isinstance(stop, str) else [*stop]
    own = config.stop_strings or []
    strings += [own] if isinstance(own, str) else [*own]
    config.stop_strings = None
    config.return_dict_in_generate = False
    config.use_cache = True
    if not all(isinstance(each, str) and each for each in strings):
        raise ConfigError("a stop string must not be empty")
    return config, tuple(strings)
