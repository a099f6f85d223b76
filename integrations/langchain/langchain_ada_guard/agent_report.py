"""Tells an agent's user interface and traces what the guard found in one answer. Never a word of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langsmith import get_current_run_tree

from ada_guard import AdaGuardError, ContentFlaggedError
from ada_guard.delta import Usage
from ada_guard.policy import DEFAULT_REPLACEMENT
from langchain_ada_guard.agent_cut import OWED_KEY
from langchain_ada_guard.report import EVENT_NAME

__all__ = ["AnswerReport", "annotate_trace"]

_OF_A_CHECK = ("checker", "reason", "harm_probability", "threshold", "partial_view")


class AnswerReport(BaseCallbackHandler):
    """Hears what the guard says of one answer, and passes it on to the run's custom stream.

    Args:
        write: LangGraph's stream writer. It is given ``{"ada_guard": {...}}``, see `langchain_ada_guard.report`.
    """

    run_inline = True  # on the thread of the stream: what is written stands between the chunks where it belongs
    raise_error = True

    def __init__(self, write: Callable[[Any], None]) -> None:
        self._write = write
        self._checks: list[Mapping[str, Any]] = []
        self._halt: Mapping[str, Any] | None = None
        self._done: Mapping[str, Any] | None = None

    def on_custom_event(
        self,
        name: str,
        data: Any,
        *,
        run_id: UUID,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Notes an event of the guard's and passes it on."""
        if name != EVENT_NAME or not isinstance(data, Mapping) or "event" not in data:
            return  # an application may have events of that name
        if data["event"] == "check":
            self._checks.append(data)
        elif data["event"] == "halt":
            self._halt = data
        elif data["event"] == "done":
            self._done = data
        self._write({EVENT_NAME: data})

    @property
    def summary(self) -> dict[str, str | int]:
        """The answer in four words for a trace.

        ``verdict`` is ``"pass"``, ``"flag"`` or ``"unchecked"``; ``depth`` is that of the cut, or of the last check;
        ``released_depth`` up to where the answer was shown then; ``checks`` how many were made.
        """
        decisions = [check["decision"] for check in self._checks]
        last = self._checks[-1]["depth"] if self._checks else 0
        if self._halt is not None:
            verdict = "flag" if self._halt["reason"] == "flag" else "unchecked"
        elif self._done is not None and self._done["unchecked_released_tokens"]:
            # Shown all the same, as the policy says.
            verdict = "flag" if "flag" in decisions else "unchecked"
        else:
            verdict = "pass"
        halt = self._halt or {"depth": last, "released_depth": last}
        return {
            "verdict": verdict,
            "depth": halt["depth"],
            "released_depth": halt["released_depth"],
            "checks": len(self._checks),
        }

    @property
    def usage(self) -> Usage | None:
        """What the answer has cost, as far as the guard has counted."""
        tokens = None if self._done is None else self._done["generated_tokens"]
        return None if tokens is None else Usage(prompt_tokens=None, completion_tokens=tokens)

    def cut(self, error: AdaGuardError) -> dict[str, Any]:
        """The metadata entry of an answer that was cut and for which the guard raised, as `cut_entry` makes it.

        Raises:
            AdaGuardError: The error, if it does not say that the answer was cut.
        """
        if isinstance(error, ContentFlaggedError):
            verdict = error.verdict
            said = {name: getattr(verdict, name) for name in (*_OF_A_CHECK, "lookahead_tokens")}
            return {**self.summary, "verdict": "flag", "replacement_chars": 0, **said, OWED_KEY: "flagged"}
        # The root of all errors itself stands for one thing: the policy's replacement function failed, after the cut.
        if type(error) is not AdaGuardError or self._halt is None:
            raise error
        said = {name: check.get(name) for check in self._checks[-1:] for name in _OF_A_CHECK}
        replaced = {"replacement_chars": len(DEFAULT_REPLACEMENT), OWED_KEY: "replacement", "error": str(error)}
        return {**self.summary, **said, **replaced}


def annotate_trace(summary: Mapping[str, str | int]) -> None:
    """Puts the summary on what traces the model's step: LangSmith's run, and OpenTelemetry's span."""
    attributes = {f"{EVENT_NAME}.{name}": value for name, value in summary.items()}
    if (run := get_current_run_tree()) is not None:
        run.add_metadata(attributes)
    try:
        from opentelemetry import trace
    except ImportError:  # optional: without it there is no span
        return
    trace.get_current_span().set_attributes(attributes)
