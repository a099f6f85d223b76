"""`Guard`: a model, a checker and a policy. The public face; everything it does is done elsewhere."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ada_guard.checkers import CascadeChecker, ProbeChecker, RethinkChecker
from ada_guard.checking import Checker
from ada_guard.driver import adrive, check_due, drive, guarded, run_on, unguarded
from ada_guard.errors import CheckError, ConfigError
from ada_guard.events import Check, Done, Event, FinishReason, Release, Replace
from ada_guard.guarded_session import GuardedSession
from ada_guard.policy import Policy
from ada_guard.session import StreamSession
from ada_guard.verdict import Decision, Verdict

if TYPE_CHECKING:
    from ada_guard.local import LocalModel, LocalStream, StateProbe
    from ada_guard.sidecar.companion import CompanionStream

__all__ = ["Completion", "Guard", "Messages"]

Messages: TypeAlias = Sequence[Mapping[str, Any]]
Tools: TypeAlias = Sequence[Any] | None
TemplateKwargs: TypeAlias = Mapping[str, Any] | None
CheckName: TypeAlias = Literal["probe", "rethink", "cascade"]

_CHECKERS: Mapping[str, type[ProbeChecker | RethinkChecker | CascadeChecker]] = {
    "probe": ProbeChecker,
    "rethink": RethinkChecker,
    "cascade": CascadeChecker,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer.

    Attributes:
        text: The answer, or after a cut the replacement alone: what belongs into a history.
        released: What a stream's consumer saw before the cut, or all of it.
        events: Everything that happened, in order.
    """

    text: str = field(repr=False)
    released: str = field(repr=False)
    events: tuple[Event, ...] = field(repr=False)

    @property
    def done(self) -> Done:
        """The closing event, with the counts."""
        done = self.events[-1]
        assert isinstance(done, Done)
        return done

    @property
    def finish_reason(self) -> FinishReason:
        """``"content_filter"`` after a cut, otherwise the source's own."""
        return self.done.finish_reason

    @property
    def flagged(self) -> bool:
        """Whether any check flagged, cut or not."""
        return any(isinstance(event, Check) and event.decision == "flag" for event in self.events)


class Guard:
    """Guards streams of one model.

    A guard holds no state of a stream: any number of threads and tasks may use one at the same time.

    Args:
        model: The local model that generates, or that judges what something else generates.
        checker: Who decides. None: the probe if the model has one, else rethink.
        policy: When to check and what to do then.
        check_pass: ``"fused"`` lets checks ride in the decode step; ``"separate"`` is bit-identical to an unguarded
            run.

    Raises:
        ConfigError: A probe check without a probe.
    """

    def __init__(
        self,
        model: LocalModel,
        *,
        checker: Checker | None = None,
        policy: Policy | None = None,
        check_pass: Literal["fused", "separate"] = "fused",
    ) -> None:
        if check_pass not in ("fused", "separate"):
            raise ConfigError("check_pass must be fused or separate")
        self.model = model
        self.policy = policy or Policy()
        self.check_pass: Literal["fused", "separate"] = check_pass
        chosen: Checker = checker or (ProbeChecker() if model.probe is not None else RethinkChecker())
        calibration = None if model.probe is None else model.probe.calibration
        self.checker = chosen.prepare(calibration, self.policy.schedule)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        probe: str | Path | StateProbe | None = None,
        check: CheckName | Checker | None = None,
        policy: Policy | None = None,
        check_pass: Literal["fused", "separate"] = "fused",
        **model_kwargs: Any,
    ) -> Guard:
        """A guard on a model that is loaded by id or folder.

        Args:
            model: Hugging Face id, folder, or ``"reference"`` for the bundled stand-in (which brings its probe).
            probe: A probe file or a loaded probe of this model; enables the probe and the cascade.
            check: ``"probe"``, ``"rethink"``, ``"cascade"`` or a checker. None: the probe if there is one, else
                rethink.
            policy: When to check and what to do then.
            check_pass: As in the constructor.
            model_kwargs: ``device``, ``dtype``, ``device_map``, ``revision`` and so on; see `LocalModel`.

        Raises:
            ConfigError: The model or the probe cannot be had, or they do not belong together.
            MissingExtraError: torch or transformers is not installed.
        """
        from ada_guard.local import LocalModel
        from ada_guard.probe import LinearProbe
        from ada_guard.reference import PROBE_FILE

        if isinstance(check, str) and check not in _CHECKERS:
            raise ConfigError(f"check must be one of {', '.join(_CHECKERS)}")
        checker = _CHECKERS[check]() if isinstance(check, str) else check
        if probe is None and str(model) == "reference":
            probe = PROBE_FILE
        loaded = LinearProbe.load(probe) if isinstance(probe, (str, Path)) else probe
        local = LocalModel.from_pretrained(model, probe=loaded, **model_kwargs)
        return cls(local, checker=checker, policy=policy, check_pass=check_pass)

    # -- a local stream -------------------------------------------------------------------------------------------

    def stream(
        self,
        messages: Messages,
        *,
        tools: Tools = None,
        template_kwargs: TemplateKwargs = None,
        **generation: Any,
    ) -> Generator[Event, None, None]:
        """Generates an answer and yields the events of the guarded stream.

        Closing the generator, or dropping it, stops the generation.

        Args:
            messages: The conversation as role/content mappings. An assistant turn at the end is a prefill.
            tools: Tool definitions for the chat template.
            template_kwargs: Variables of the chat template, such as ``enable_thinking`` or ``documents``.
            generation: ``max_new_tokens``, ``temperature``, ``stop``, ``seed``; any further field of transformers'
                ``GenerationConfig``.

        Raises:
            ConfigError: Before any token flows.
            ContentFlaggedError: Only with ``on_flag="raise"``.
            GenerationError: The model failed; what was held back is dropped.
        """
        source, session = self._open(messages, tools, template_kwargs, generation)
        return drive(guarded(session, source, source, self.checker), source)

    def astream(
        self,
        messages: Messages,
        *,
        tools: Tools = None,
        template_kwargs: TemplateKwargs = None,
        **generation: Any,
    ) -> AsyncGenerator[Event, None]:
        """As `stream`, for async code; the model runs on a worker thread of its own."""
        source, session = self._open(messages, tools, template_kwargs, generation)
        return adrive(guarded(session, source, source, self.checker), source, self.model.worker)

    def unguarded(
        self,
        messages: Messages,
        *,
        tools: Tools = None,
        template_kwargs: TemplateKwargs = None,
        **generation: Any,
    ) -> Generator[Event, None, None]:
        """The same generation without any check: the control for measurements. Shows whatever the model says."""
        source, _ = self._open(messages, tools, template_kwargs, generation)
        return drive(unguarded(source), source)

    def complete(self, messages: Messages, **settings: Any) -> Completion:
        """Generates a whole answer; `settings` are those of `stream`."""
        return _completion(list(self.stream(messages, **settings)))

    async def acomplete(self, messages: Messages, **settings: Any) -> Completion:
        """As `complete`, for async code."""
        return _completion([event async for event in self.astream(messages, **settings)])

    # -- text that something else wrote ---------------------------------------------------------------------------

    def session(
        self, messages: Messages, *, tools: Tools = None, template_kwargs: TemplateKwargs = None
    ) -> GuardedSession:
        """Guards a stream of one's own: push its text, get events.

        The model is then a companion: it judges text that it may not have written itself. The published numbers of
        Any-Depth Alignment do not cover that.
        """
        companion = self._companion(messages, tools, template_kwargs)
        session = StreamSession(
            self.policy, prefill_tokens=companion.prefill_tokens, prefill_text=companion.prefill_text
        )
        return GuardedSession(session, companion, self.checker, self.model.worker)

    def check(
        self, messages: Messages, response: str, *, tools: Tools = None, template_kwargs: TemplateKwargs = None
    ) -> Verdict:
        """Judges a finished answer at every depth of the schedule and at its end.

        Returns:
            The verdict that decided: the flag, or the pass at the end.

        Raises:
            CheckError: A check could not be made, or the checker abstained.
        """
        companion = self._companion(messages, tools, template_kwargs)
        try:
            pieces = [*companion.push(response), *companion.flush()]
            policy = Policy(schedule=self.policy.schedule, consecutive=self.policy.consecutive, check_prompt=not pieces)
            session = StreamSession(
                policy, prefill_tokens=companion.prefill_tokens, prefill_text=companion.prefill_text
            )
            for piece in pieces:
                session.push(piece)
            session.end("stop")
            verdict: Verdict | None = None
            while session.due is not None:
                verdict = check_due(session, companion, self.checker)
                if verdict is None or verdict.decision is Decision.ABSTAIN:
                    raise CheckError(_last_failure(session.drain()))
            if verdict is None:
                raise CheckError("no check was made")
            return verdict
        finally:
            companion.close()

    async def acheck(
        self, messages: Messages, response: str, *, tools: Tools = None, template_kwargs: TemplateKwargs = None
    ) -> Verdict:
        """As `check`, for async code."""
        return await run_on(
            self.model.worker,
            lambda: self.check(messages, response, tools=tools, template_kwargs=template_kwargs),
        )

    # -- inside ---------------------------------------------------------------------------------------------------

    def _open(
        self, messages: Messages, tools: Tools, template_kwargs: TemplateKwargs, generation: Mapping[str, Any]
    ) -> tuple[LocalStream, StreamSession]:
        from ada_guard.local import LocalStream

        own = {
            name: generation[name] for name in ("max_new_tokens", "temperature", "stop", "seed") if name in generation
        }
        rest = {name: value for name, value in generation.items() if name not in own}
        prompt = self.model.encode(messages, tools=tools, template_kwargs=template_kwargs)
        source = LocalStream(self.model, prompt, check_pass=self.check_pass, generation=rest, **own)
        session = StreamSession(self.policy, prefill_tokens=source.prefill_tokens, prefill_text=source.prefill_text)
        return source, session

    def _companion(self, messages: Messages, tools: Tools, template_kwargs: TemplateKwargs) -> CompanionStream:
        from ada_guard.sidecar.companion import CompanionStream

        prompt = self.model.encode(messages, tools=tools, template_kwargs=template_kwargs)
        return CompanionStream(self.model, prompt, check_pass=self.check_pass)


def _completion(events: list[Event]) -> Completion:
    released = "".join(event.text for event in events if isinstance(event, Release))
    cut = isinstance(events[-1], Done) and events[-1].finish_reason == "content_filter"
    replacement = "".join(event.text for event in events if isinstance(event, Replace))
    return Completion(text=replacement if cut else released, released=released, events=tuple(events))


def _last_failure(events: list[Event]) -> str:
    checks = [event for event in events if isinstance(event, Check)]
    return f"check at depth {checks[-1].depth} could not be made: {checks[-1].reason}"
