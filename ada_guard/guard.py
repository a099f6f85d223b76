"""`Guard`: a source, a sidecar, a checker and a policy. The public face; everything it does is done elsewhere."""

from __future__ import annotations

import threading
import warnings
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ada_guard.assembly import (
    CheckName,
    choices_asked,
    is_local,
    load_model,
    measurable,
    named_checker,
    salt_asked,
    sidecar_for,
    single_choice,
)
from ada_guard.checkers import ProbeChecker, RethinkChecker
from ada_guard.checking import Ask, AskProbe, Calibration, Checker
from ada_guard.completion import Completion
from ada_guard.driver import Flow, Lane, Source, adrive, closing, drive, finished, guarded, unguarded
from ada_guard.errors import ConfigError
from ada_guard.events import Event
from ada_guard.guarded_session import GuardedSession, Pushed, fragments_of
from ada_guard.policy import AutoSchedule, Policy
from ada_guard.session import StreamSession
from ada_guard.sidecar.protocol import Conversation, Following, Sidecar
from ada_guard.steps import Steps, Work, arun, run
from ada_guard.verdict import Verdict

if TYPE_CHECKING:
    from ada_guard.delta import Delta
    from ada_guard.local import LocalModel, StateProbe
    from ada_guard.sources import Endpoint

__all__ = ["Guard", "Messages"]

Messages: TypeAlias = Sequence[Mapping[str, Any]]
Tools: TypeAlias = Sequence[Any] | None
TemplateKwargs: TypeAlias = Mapping[str, Any] | None
CheckPass: TypeAlias = Literal["fused", "separate"]


class Guard:
    """Guards streams: of a local model, of an endpoint, or of whatever its user pushes.

    A guard holds no state of a stream: any number of threads and tasks may use one at the same time.

    Args:
        model: What generates: a local model, an endpoint, or None where streams are only pushed.
        sidecar: What judges. None: the local model itself, in whose decode steps the checks then ride. A local model
            given here becomes a companion.
        checker: Who decides. None: the probe if the sidecar has one, else rethink.
        policy: When to check and what to do then. An automatic schedule is measured and chosen once: here where a local
            model judges itself, else by `connect`; `policy` and a log line then hold what was chosen.
        shared_tokenizer: Whether an endpoint's tokenizer is that of the sidecar: the endpoint is then asked for token
            ids, and they define depth. None: only where the endpoint's own model judges.
        check_pass: For a local model that judges itself: ``"fused"`` lets checks ride in the decode step;
            ``"separate"`` is bit-identical to an unguarded run.

    Raises:
        ConfigError: Nothing to judge with; a probe check of a local model without a probe; an automatic schedule for
            a sidecar in another process.
    """

    def __init__(
        self,
        model: LocalModel | Endpoint | None = None,
        *,
        sidecar: Sidecar | LocalModel | None = None,
        checker: Checker | None = None,
        policy: Policy | None = None,
        shared_tokenizer: bool | None = None,
        check_pass: CheckPass = "fused",
    ) -> None:
        if check_pass not in ("fused", "separate"):
            raise ConfigError("check_pass must be fused or separate")
        if isinstance(model, (str, Path)) or isinstance(sidecar, (str, Path)):
            raise ConfigError("Guard takes what is loaded: use Guard.from_pretrained or Guard.for_endpoint for names")
        self._lock = threading.Lock()
        self.endpoint: Endpoint | None = None
        self._local: LocalModel | None = None
        if is_local(model):
            self._local = model
        else:
            self.endpoint = model
        if self._local is None and sidecar is None:
            raise ConfigError("a guard needs something that judges: give sidecar=")
        self.policy = policy or Policy()
        self.check_pass: CheckPass = check_pass
        self._sidecar = sidecar
        self._judges_itself = sidecar is None
        self._shared_tokenizer = shared_tokenizer
        self._wanted_checker = checker
        self._checker: Checker | None = None
        if isinstance(self.policy.schedule, AutoSchedule):
            measured = measurable(self._local if sidecar is None else sidecar)
            if self._judges_itself:
                self._choose_schedule(measured)
        if self._local is not None and self._judges_itself:
            self._checker = self._prepared(None if self._local.probe is None else self._local.probe.calibration)

    @property
    def model(self) -> LocalModel:
        """The local model that generates.

        Raises:
            ConfigError: There is none.
        """
        if self._local is None:
            raise ConfigError("this guard has no local model: an endpoint generates, or streams are pushed")
        return self._local

    @property
    def sidecar(self) -> Sidecar:
        """What judges text that this guard's own local model is not writing at the moment."""
        with self._lock:
            judge = self._local if self._sidecar is None else self._sidecar
            assert judge is not None
            if is_local(judge):
                from ada_guard.sidecar.companion import LocalSidecar

                judge = LocalSidecar(judge)
            self._sidecar = judge
            return judge

    @property
    def checker(self) -> Checker:
        """Who decides.

        Raises:
            ConfigError: Not known yet: the sidecar must be asked first, see `connect`.
        """
        if self._checker is None:
            raise ConfigError("call connect() first: which checker decides depends on the sidecar")
        return self._checker

    def __copy__(self) -> Guard:
        """Itself: a guard is shared, and so is what it has loaded."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Guard:
        """As `__copy__`, so that what holds a guard can be copied."""
        return self

    def connect(self) -> None:
        """Asks the sidecar what it can do. Made by the first stream otherwise.

        Raises:
            CheckError: It cannot be reached.
            ConfigError: It has no probe, and the checker needs one.
        """
        run(self._connect())

    async def aconnect(self) -> None:
        """As `connect`, for async code."""
        await arun(self._connect())

    def close(self) -> None:
        """Closes sidecar and endpoint, also those it was given: close a guard whose sidecar others use with the last.

        Streams that still run fail.
        """
        run(self._close())

    async def aclose(self) -> None:
        """As `close`, for async code."""
        await arun(self._close())

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        probe: str | Path | StateProbe | None = None,
        check: CheckName | Checker | None = None,
        policy: Policy | None = None,
        check_pass: CheckPass = "fused",
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
            model_kwargs: ``device``, ``dtype``, ``device_map``, ``revision`` and so on; see `LocalModel`. With
                ``probe_only=True`` the guard judges what is pushed to it, and generates nothing.

        Raises:
            ConfigError: The model or the probe cannot be had, or they do not belong together.
            MissingExtraError: torch or transformers is not installed.
        """
        checker = named_checker(check)
        return cls(load_model(model, probe, **model_kwargs), checker=checker, policy=policy, check_pass=check_pass)

    @classmethod
    def for_endpoint(
        cls,
        base_url: str,
        *,
        model: str,
        sidecar: Sidecar | LocalModel | str | Path,
        tokenizer: str | Path | None = None,
        probe: str | Path | StateProbe | None = None,
        probe_only: bool = False,
        check: CheckName | Checker | None = None,
        policy: Policy | None = None,
        shared_tokenizer: bool | None = None,
        **settings: Any,
    ) -> Guard:
        """A guard on an OpenAI-compatible endpoint.

        Args:
            base_url: Up to and with ``/v1``.
            model: Its name there.
            sidecar: What judges: the URL of a sidecar server (`ada-guard serve`), a Hugging Face id or folder to load
                here, ``"reference"``, a loaded local model, a sidecar, or ``"self"``: the endpoint's own model, asked
                by rethink.
            tokenizer: For ``"self"``: Hugging Face id or folder of the endpoint's tokenizer.
            probe: As in `from_pretrained`, for a sidecar that is loaded here.
            probe_only: For a sidecar that is loaded here: load no more of it than its probe needs. No other check can
                then be made with it.
            check: As in `from_pretrained`.
            policy: When to check and what to do then.
            shared_tokenizer: As in the constructor.
            settings: Further settings of `ada_guard.sources.Endpoint`.

        Raises:
            ConfigError: A setting that cannot work.
        """
        from ada_guard.sources import Endpoint

        checker = named_checker(check)
        if unknown := sorted(settings.keys() - {each.name for each in fields(Endpoint) if each.init}):
            raise ConfigError(f"an endpoint has no setting called {', '.join(unknown)}")
        endpoint = Endpoint(base_url=base_url, model=model, **settings)
        judge = sidecar_for(endpoint, sidecar, tokenizer=tokenizer, probe=probe, probe_only=probe_only)
        return cls(endpoint, sidecar=judge, checker=checker, policy=policy, shared_tokenizer=shared_tokenizer)

    @classmethod
    def for_sidecar(
        cls,
        sidecar: Sidecar | LocalModel | str | Path,
        *,
        probe: str | Path | StateProbe | None = None,
        probe_only: bool = False,
        check: CheckName | Checker | None = None,
        policy: Policy | None = None,
    ) -> Guard:
        """A guard on streams that something else generates: another library's model, a session, finished answers.

        Args:
            sidecar: What judges: the URL of a sidecar server (`ada-guard serve`), a Hugging Face id or folder to load
                here, ``"reference"``, a loaded local model, or a sidecar.
            probe: As in `from_pretrained`, for a sidecar that is loaded here.
            probe_only: As in `for_endpoint`.
            check: As in `from_pretrained`.
            policy: When to check and what to do then.

        Raises:
            ConfigError: A setting that cannot work.
        """
        checker = named_checker(check)
        judge = sidecar_for(None, sidecar, tokenizer=None, probe=probe, probe_only=probe_only)
        return cls(sidecar=judge, checker=checker, policy=policy)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this guard from another one, as JSON types: what a cache of guarded answers must have in its key.

        Models count by name, functions by their qualified name.
        """
        judge = self._local if self._judges_itself else self._sidecar
        return {
            "generates": getattr(self._local or self.endpoint, "identity", None),
            "judges": getattr(judge, "identity", None) or type(judge).__qualname__,
            "checker": repr(self._wanted_checker),
            "policy": repr(self.policy),
            "replacement": self.policy.replacement_name,
            "check_pass": self.check_pass,
            "shared_tokenizer": self._shared_tokenizer,
        }

    # -- streams of the guard's own source ------------------------------------------------------------------------

    def stream(
        self,
        messages: Messages | str,
        *,
        tools: Tools = None,
        template_kwargs: TemplateKwargs = None,
        **generation: Any,
    ) -> Generator[Event, None, None]:
        """Generates an answer and yields the events of the guarded stream.

        Closing the generator, or dropping it, stops the generation.

        Args:
            messages: The conversation as role/content mappings. An assistant turn at the end is a prefill. A text is
                a raw prompt, for endpoints with ``api="completions"``.
            tools: Tool definitions.
            template_kwargs: Variables of the chat template, such as ``enable_thinking`` or ``documents``.
            generation: For a local model ``max_new_tokens``, ``temperature``, ``stop``, ``seed`` and any further field
                of transformers' ``GenerationConfig``; for an endpoint the fields of its request.

        Raises:
            ConfigError: Before any token flows.
            CheckError: The sidecar cannot be reached; before any token flows.
            ContentFlaggedError: Only with ``on_flag="raise"``.
            GenerationError: The source failed; what was held back is dropped.
        """
        return drive(*self._flow(messages, tools, template_kwargs, generation))

    def astream(
        self,
        messages: Messages | str,
        *,
        tools: Tools = None,
        template_kwargs: TemplateKwargs = None,
        **generation: Any,
    ) -> AsyncGenerator[Event, None]:
        """As `stream`, for async code; a local model runs on a worker thread of its own.

        Leave it early inside ``async with contextlib.aclosing(...)``: without that, Python closes what is left of an
        async generator some time later, or never if its event loop ends first.
        """
        return adrive(*self._flow(messages, tools, template_kwargs, generation))

    def unguarded(
        self,
        messages: Messages | str,
        *,
        tools: Tools = None,
        template_kwargs: TemplateKwargs = None,
        **generation: Any,
    ) -> Generator[Event, None, None]:
        """The same generation without any check: the control for measurements. Shows whatever the model says."""
        source = self._source(Conversation.of(messages, tools, template_kwargs), generation)
        return drive(unguarded(source), source.close)

    def complete(self, messages: Messages | str, **settings: Any) -> Completion:
        """Generates a whole answer; `settings` are those of `stream`."""
        return Completion.of(list(self.stream(messages, **single_choice(settings))))

    async def acomplete(self, messages: Messages | str, **settings: Any) -> Completion:
        """As `complete`, for async code."""
        return Completion.of([event async for event in self.astream(messages, **single_choice(settings))])

    # -- text that something else wrote ---------------------------------------------------------------------------

    def session(
        self, messages: Messages | str, *, tools: Tools = None, template_kwargs: TemplateKwargs = None
    ) -> GuardedSession:
        """Guards a stream of one's own: push its text, get events.

        The sidecar is then a companion: it judges text that it may not have written itself. The published numbers of
        Any-Depth Alignment do not cover that.

        Raises:
            ConfigError: The conversation cannot be shown to the sidecar's model.
            CheckError: The sidecar cannot be reached, or has no room.
        """
        return run(self._session(Conversation.of(messages, tools, template_kwargs)))

    async def asession(
        self, messages: Messages | str, *, tools: Tools = None, template_kwargs: TemplateKwargs = None
    ) -> GuardedSession:
        """As `session`, for async code."""
        return await arun(self._session(Conversation.of(messages, tools, template_kwargs)))

    def stream_from(
        self,
        items: Iterable[str | Delta],
        messages: Messages | str,
        *,
        tools: Tools = None,
        template_kwargs: TemplateKwargs = None,
    ) -> Generator[Event, None, None]:
        """Guards what an iterable gives: another library's stream, or anything else that yields text.

        Args:
            items: Texts, or deltas with reasoning and tool calls. Read no further than it is checked; closed after a
                cut if it is a generator.
            messages: What it answers.
            tools: Tool definitions.
            template_kwargs: Variables of the sidecar's chat template.
        """
        return drive(*self._from(items, Conversation.of(messages, tools, template_kwargs)))

    def astream_from(
        self,
        items: Iterable[str | Delta] | AsyncIterable[str | Delta],
        messages: Messages | str,
        *,
        tools: Tools = None,
        template_kwargs: TemplateKwargs = None,
    ) -> AsyncGenerator[Event, None]:
        """As `stream_from`, for async code and async iterables."""
        return adrive(*self._from(items, Conversation.of(messages, tools, template_kwargs)))

    def check(
        self, messages: Messages | str, response: Pushed, *, tools: Tools = None, template_kwargs: TemplateKwargs = None
    ) -> Verdict:
        """Judges a finished answer at every depth of the schedule and at its end.

        Returns:
            The verdict that decided: the flag, or the pass at the end.

        Raises:
            CheckError: A check could not be made, or the checker abstained.
        """
        return run(self._check(Conversation.of(messages, tools, template_kwargs), response))

    async def acheck(
        self, messages: Messages | str, response: Pushed, *, tools: Tools = None, template_kwargs: TemplateKwargs = None
    ) -> Verdict:
        """As `check`, for async code."""
        return await arun(self._check(Conversation.of(messages, tools, template_kwargs), response))

    # -- inside ---------------------------------------------------------------------------------------------------

    def _prepared(self, calibration: Calibration | None) -> Checker:
        default: Checker = ProbeChecker() if calibration is not None else RethinkChecker()
        return (self._wanted_checker or default).prepare(calibration, self.policy.schedule)

    def _connect(self) -> Steps[Checker]:
        if self._checker is None:
            calibration = yield from self.sidecar.connect()
            if isinstance(self.policy.schedule, AutoSchedule):
                measured = measurable(self.sidecar)
                yield Work(lambda: self._choose_schedule(measured), measured.worker)
            self._checker = self._prepared(calibration)
        return self._checker

    def _choose_schedule(self, measured: LocalModel) -> None:
        """Puts the schedule that an automatic one comes to on this model in its place, for all streams alike."""
        import logging  # here, as the line below: importing the package is to be quick

        from ada_guard.local.cost import measure

        default: frozenset[type[Ask]] = frozenset({AskProbe})
        asks = default if self._wanted_checker is None else self._wanted_checker.asks
        cost = measure(measured, asks, check_pass=self.check_pass)
        with self._lock:
            asked = self.policy.schedule
            if not isinstance(asked, AutoSchedule):
                return  # two first streams have measured at the same time: what the other one chose holds
            chosen = asked.chosen(step_ms=cost.step_ms, check_ms=cost.check_ms)
            self.policy = replace(self.policy, schedule=chosen)
        logging.getLogger(__name__).info(
            "%s: schedule %s; a check adds %.1f ms to a step of %.1f ms",
            asked.spelling,
            chosen.spelling,
            cost.check_ms,
            cost.step_ms,
        )
        if cost.check_ms / chosen.interval_tokens > asked.overhead * cost.step_ms:
            warnings.warn(
                f"checks every {chosen.interval_tokens} tokens, the sparsest that are chosen, take more than the "
                f"{asked.overhead:.1%} of the decode time that the schedule allows",
                stacklevel=3,
            )

    def _close(self) -> Steps[None]:
        parts: list[Callable[[], Steps[None]]] = []
        if self._sidecar is not None and not is_local(self._sidecar):
            parts.append(self._sidecar.close)
        if self.endpoint is not None:
            parts.append(self.endpoint.close)
        yield from closing(parts)

    def _flow(
        self, messages: Messages | str, tools: Tools, template_kwargs: TemplateKwargs, generation: Mapping[str, Any]
    ) -> tuple[Flow, Callable[[], Steps[None]]]:
        """The flow of a stream, and what closes all that it opens."""
        conversation = replace(Conversation.of(messages, tools, template_kwargs), cache_salt=salt_asked(generation))
        if self._judges_itself:
            source, session = self._open(conversation, generation)
            return guarded(source, [Lane(session, source, by_ids=True)], self.checker), source.close
        plain = self._source(conversation, generation)

        def connected() -> Source:
            by_ids = self.endpoint is not None and self._by_ids()
            return self._source(conversation, {"return_token_ids": True, **generation}) if by_ids else plain

        return self._followed(conversation, plain, connected, choices_asked(generation))

    def _from(
        self, items: Iterable[str | Delta] | AsyncIterable[str | Delta], conversation: Conversation
    ) -> tuple[Flow, Callable[[], Steps[None]]]:
        from ada_guard.sources import IterableSource

        source = IterableSource(items)
        return self._followed(conversation, source, lambda: source, 1)

    def _followed(
        self, conversation: Conversation, plain: Source, source: Callable[[], Source], choices: int
    ) -> tuple[Flow, Callable[[], Steps[None]]]:
        """The flow of a source that the sidecar does not write itself.

        Args:
            conversation: What it answers.
            plain: The source, as far as it can be made without the sidecar.
            source: Gives the source once the sidecar is connected.
            choices: How many answers it gives.
        """
        opened: list[Callable[[], Steps[None]]] = [plain.close]

        def flow() -> Flow:
            checker = yield from self._connect()
            asked, by_ids = source(), self._by_ids()
            opened.append(asked.close)
            lanes = []
            for choice in range(choices):
                following = yield from self._follow(conversation, checker)
                opened.append(following.close)
                lanes.append(Lane(self._state(following, choice), following, by_ids=by_ids))
            yield from guarded(asked, lanes, checker)

        return flow(), lambda: closing(opened)

    def _by_ids(self) -> bool:
        """Whether the source's token ids define depth."""
        return self.sidecar.reads_source_ids if self._shared_tokenizer is None else self._shared_tokenizer

    def _source(self, conversation: Conversation, generation: Mapping[str, Any]) -> Source:
        if self.endpoint is None:
            source: Source = self._open(conversation, generation)[0]
            return source
        if conversation.template_kwargs:
            # The name under which vLLM, SGLang, llama-server and transformers serve take them.
            generation = {"chat_template_kwargs": dict(conversation.template_kwargs), **generation}
        return self.endpoint.open(
            conversation.messages or None, prompt=conversation.raw_prompt, tools=conversation.tools, **generation
        )

    def _open(self, conversation: Conversation, generation: Mapping[str, Any]) -> tuple[Any, StreamSession]:
        """A generation of the local model, which is its own sidecar."""
        from ada_guard.local import LocalStream

        self.model.require_whole()
        own = {
            name: generation[name] for name in ("max_new_tokens", "temperature", "stop", "seed") if name in generation
        }
        rest = {name: value for name, value in generation.items() if name not in own}
        prompt = self.model.encode(
            conversation.plain_messages(),
            tools=conversation.tools,
            template_kwargs=conversation.template_kwargs,
        )
        source = LocalStream(self.model, prompt, check_pass=self.check_pass, generation=rest, **own)
        return source, self._state(source, 0)

    def _follow(self, conversation: Conversation, checker: Checker) -> Steps[Following]:
        return (yield from self.sidecar.open(conversation, asks=checker.asks, schedule=self.policy.schedule))

    def _state(self, following: Following, choice: int) -> StreamSession:
        return StreamSession(
            self.policy,
            prefill_tokens=following.prefill_tokens,
            prefill_text=following.prefill_text,
            choice=choice,
        )

    def _session(self, conversation: Conversation) -> Steps[GuardedSession]:
        checker = yield from self._connect()
        following = yield from self._follow(conversation, checker)
        return GuardedSession(self._state(following, 0), following, checker)

    def _check(self, conversation: Conversation, response: Pushed) -> Steps[Verdict]:
        checker = yield from self._connect()
        following = yield from self._follow(conversation, checker)
        try:
            return (yield from finished(following, checker, self.policy, fragments_of(response)))
        finally:
            yield from following.close()
