"""What an endpoint's completions API takes of a self-check, found out by asking it. Knows no stream and no check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ada_guard.delta import Usage
from ada_guard.errors import ConfigError, GenerationError
from ada_guard.sidecar.endpoint_tokens import EndpointTokens, PromptForm
from ada_guard.sources import Endpoint
from ada_guard.sources.wire import ints_of
from ada_guard.steps import Steps

__all__ = ["EndpointFeatures", "cached_tokens", "probe_features"]

SAMPLE = "It's 12:45, naïve café prices rose 3.5 % -- 価格は上がった; def f(x): return x**2\n\n\t🙂 done."
"""A text that different tokenizers read as different tokens."""
_TOKENIZE_S = 10.0
_TOKENIZE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointFeatures:
    """What was found.

    Attributes:
        prompt: The form in which prompts are sent.
        extensions: Whether it takes fields beside those of OpenAI's API (vLLM, SGLang).
        returns_token_ids: Whether its answers carry token ids.
        tokenize: Whether it has ``/tokenize``.
        tokenizer: How it was made sure that the tokenizer is the endpoint's: by the ids of a sample text, by the number
            of its tokens, or not at all.
        reports_cached: Whether it says how much of a prompt it had in its prefix cache.
    """

    prompt: PromptForm
    extensions: bool
    returns_token_ids: bool
    tokenize: bool
    tokenizer: Literal["ids", "count", "unverified"]
    reports_cached: bool

    def __str__(self) -> str:
        forms = {
            "ids": "token ids",
            "text": "text only; each is checked to stand for its ids, no second BOS",
            "text_with_bos": "text only, with its BOS; each is checked to stand for its ids",
        }
        verified = {
            "ids": "the endpoint's, by the ids of a sample",
            "count": "probably the endpoint's: it counts as many tokens in a sample",
            "unverified": "not verified: the endpoint shows neither ids nor counts",
        }
        return "\n".join(
            [
                f"prompts:              {forms[self.prompt]}",
                f"ids in answers:       {'yes' if self.returns_token_ids else 'no'}",
                f"/tokenize:            {'yes' if self.tokenize else 'no'}",
                f"tokenizer:            {verified[self.tokenizer]}",
                f"further fields:       {'taken' if self.extensions else 'refused'}",
                f"cached prompt tokens: {'reported' if self.reports_cached else 'not reported'}",
            ]
        )


def cached_tokens(usage: Usage | None) -> int | None:
    """Prompt tokens that the server did not have to compute, where it says so."""
    details = usage.details.get("prompt_tokens_details") if usage is not None else None
    value = details.get("cached_tokens") if isinstance(details, dict) else None
    return value if type(value) is int and value >= 0 else None


def probe_features(
    endpoint: Endpoint, tokens: EndpointTokens, *, extensions: Mapping[str, Any], asked: Mapping[str, Any]
) -> Steps[EndpointFeatures]:
    """Finds out how prompts are to be sent, with requests for one token each.

    Args:
        endpoint: With ``api="completions"``.
        tokens: Of the tokenizer that is to be the endpoint's.
        extensions: Fields that are sent where the endpoint takes them.
        asked: Fields that the user asked for, and that must not be left out.

    Raises:
        ConfigError: The endpoint takes no prompt of a usable form, refuses what was asked for, has another tokenizer,
            or does not serve this at all.
        GenerationError: It cannot be reached, or fails.
    """
    ids = tokens.encode([{"role": "user", "content": "Hello"}]).ids
    tries: list[tuple[PromptForm, Mapping[str, Any]]] = [("ids", {**extensions, **asked}), ("ids", asked)]
    tries += [("text", asked), ("text_with_bos", asked)]
    refusal: ConfigError | None = None
    for form, fields in tries:
        prompt = list(ids) if form == "ids" else tokens.as_text(ids, form=form)
        if prompt is None:
            refusal = ConfigError(
                "the endpoint takes text prompts only, and this tokenizer does not read its own text as the same ids"
            )
            continue
        try:
            answer = yield from _ask(endpoint, prompt, fields)
        except ConfigError as error:
            refusal = error
            continue
        if answer.prompt_tokens not in (None, len(ids)):
            refusal = ConfigError(
                f"the endpoint reads a prompt of {len(ids)} tokens as {answer.prompt_tokens}: it adds some, or its "
                "tokenizer is another"
            )
            continue
        listed = yield from _tokenize(endpoint)
        return EndpointFeatures(
            prompt=form,
            extensions=form == "ids" and fields is tries[0][1],
            returns_token_ids=answer.token_ids,
            tokenize=listed is not None,
            tokenizer=(yield from _verified(endpoint, tokens.tokenizer, listed, asked)),
            reports_cached=answer.cached is not None,
        )
    assert refusal is not None
    if asked:
        try:
            yield from _ask(endpoint, list(ids), extensions)
        except ConfigError:
            pass  # it was not that
        else:
            names = " and ".join(sorted(asked))
            raise ConfigError(f"the endpoint refuses {names}: leave it out, or let the server allow it")
    raise refusal from None


@dataclass(frozen=True, slots=True)
class _Answer:
    prompt_tokens: int | None
    token_ids: bool
    cached: int | None


def _ask(endpoint: Endpoint, prompt: str | list[int], fields: Mapping[str, Any]) -> Steps[_Answer]:
    stream = endpoint.open(prompt=prompt, max_tokens=1, temperature=0, extra_body=dict(fields))
    token_ids = False
    try:
        while (delta := (yield from stream.pull())) is not None:
            token_ids = token_ids or bool(delta.token_ids)
        usage = stream.usage
        stated = usage.prompt_tokens if usage is not None and not usage.estimated else None
        return _Answer(stated, token_ids, cached_tokens(usage))
    finally:
        yield from stream.close()


def _tokenize(endpoint: Endpoint) -> Steps[list[int] | None]:
    """The ids that the server's ``/tokenize`` gives for the sample; None where it has none that answers."""
    exchange = endpoint._transport.exchange(
        "POST",
        endpoint.base_url.removesuffix("/v1") + "/tokenize",
        # vLLM takes `prompt`, llama-server `content`.
        json={"model": endpoint.model, "prompt": SAMPLE, "content": SAMPLE, "add_special_tokens": False},
        headers={**endpoint._headers, "accept": "application/json"},
        timeout=_TOKENIZE_S,
    )
    try:
        response = yield from exchange.send(limit_s=_TOKENIZE_S)
        if response.status_code != 200:
            return None
        body = yield from exchange.read(limit_bytes=_TOKENIZE_BYTES, limit_s=_TOKENIZE_S)
        said = json.loads(body)
        ids = ints_of(said, "tokens") if isinstance(said, dict) else ()
        return list(ids) or None
    except Exception:  # noqa: BLE001  # an extra that may be missing in any way; what must work was asked before
        return None
    finally:
        yield from exchange.close()


def _verified(
    endpoint: Endpoint, tokenizer: Any, listed: list[int] | None, asked: Mapping[str, Any]
) -> Steps[Literal["ids", "count", "unverified"]]:
    """Makes sure that the tokenizer is the endpoint's: with another one each check would judge noise, and pass it."""
    other = "the tokenizer is not the endpoint's: it reads a sample text as other tokens"
    if listed is not None:
        if listed != tokenizer.encode(SAMPLE, add_special_tokens=False):
            raise ConfigError(other)
        return "ids"
    try:
        answer = yield from _ask(endpoint, SAMPLE, asked)
    except (ConfigError, GenerationError):
        return "unverified"
    if answer.prompt_tokens is None:
        return "unverified"
    if answer.prompt_tokens not in {len(tokenizer.encode(SAMPLE, add_special_tokens=each)) for each in (True, False)}:
        raise ConfigError(other)
    return "count"
