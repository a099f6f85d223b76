"""Which errors of a model inside come through as they are. Knows no guard."""

from __future__ import annotations

from collections.abc import Iterator
from json import JSONDecodeError

from langchain_core.exceptions import OutputParserException
from pydantic import ValidationError

from ada_guard.errors import AdaGuardError, GenerationError

__all__ = ["is_of_transport", "named", "quotes"]

_CLIENTS = frozenset({"aiohttp", "botocore", "grpc", "httpcore", "httpx", "urllib3"})
_OF_A_RESPONSE = frozenset({"status_code", "request", "response"})
"""What the errors of providers' own clients hold."""


def named(error: Exception) -> Exception:
    """An error of a call for a whole answer: itself if it is about reaching the model, else its type alone is told.

    Any other may quote the answer, which nobody has checked.
    """
    return error if is_of_transport(error) else GenerationError(f"the source failed ({type(error).__name__})")


def is_of_transport(error: Exception) -> bool:
    """Whether an error is about reaching a model, which retries and fallbacks look at. ada-guard's own hold no text."""
    if isinstance(error, AdaGuardError):
        return True
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    known = isinstance(error, OSError) or bool(
        modules & _CLIENTS or getattr(error, "__dict__", {}).keys() & _OF_A_RESPONSE
    )
    return known and not quotes(error)


def quotes(error: Exception) -> bool:
    """Whether an error, or one behind it, is of a kind that quotes what could not be read."""
    return any(isinstance(one, ValidationError | OutputParserException | JSONDecodeError) for one in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
