"""``ada-guard run``: one guarded answer, or a chat. Knows no model; the work is done by `Guard`."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing
from functools import partial

from ada_guard.cli import options as opt
from ada_guard.cli.inputs import conversation
from ada_guard.cli.loading import load_guard
from ada_guard.cli.remote import RemoteOptions
from ada_guard.cli.settings import CheckOptions, generation_settings, note_schedule
from ada_guard.cli.view import TextView, note, show_json
from ada_guard.errors import ConfigError

__all__ = ["run"]


def run(
    model: opt.Model = "reference",
    probe: opt.Probe = None,
    device: opt.Device = None,
    dtype: opt.Dtype = "auto",
    endpoint: opt.EndpointURL = None,
    endpoint_model: opt.EndpointModel = None,
    endpoint_api: opt.EndpointAPI = "chat",
    endpoint_prefill: opt.EndpointPrefill = "continue",
    api_key_env: opt.ApiKeyEnv = "OPENAI_API_KEY",
    sidecar_model: opt.SidecarModel = None,
    sidecar_url: opt.SidecarURL = None,
    self_check: opt.SelfCheck = False,
    tokenizer: opt.Tokenizer = None,
    prompt: opt.Prompt = None,
    messages: opt.MessagesFile = None,
    system: opt.System = None,
    prefill: opt.Prefill = None,
    check: opt.Check = None,
    interval: opt.Interval = None,
    schedule: opt.ScheduleText = None,
    threshold: opt.Threshold = None,
    low: opt.Low = None,
    consecutive: opt.Consecutive = 1,
    check_prompt: opt.CheckPrompt = False,
    check_pass: opt.CheckPass = "fused",
    release: opt.Release = "hold",
    window_tokens: opt.WindowTokens = 0,
    on_flag: opt.OnFlagOption = "replace",
    on_error: opt.OnErrorOption = "halt",
    replacement: opt.ReplacementText = None,
    own_refusal: opt.OwnRefusalFlag = False,
    max_new_tokens: opt.MaxNewTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    stop: opt.Stop = None,
    seed: opt.Seed = None,
    no_guard: opt.NoGuard = False,
    json: opt.Json = False,
) -> None:
    """Generate an answer under guard."""
    remote = RemoteOptions(
        endpoint=endpoint,
        endpoint_model=endpoint_model,
        endpoint_api=endpoint_api,
        endpoint_prefill=endpoint_prefill,
        api_key_env=api_key_env,
        sidecar_model=sidecar_model,
        sidecar_url=sidecar_url,
        self_check=self_check,
        tokenizer=tokenizer,
        probe=probe,
        device=device,
        dtype=dtype,
    )
    remote.require_whole(no_guard=no_guard, check=check)
    talk = conversation(prompt=prompt, messages=messages, system=system, prefill=prefill)
    if talk is None and (json or not (sys.stdin.isatty() and sys.stdout.isatty())):
        raise ConfigError("give --prompt or --messages: a chat needs a terminal and prints no JSON")
    checks = CheckOptions(
        check=check,
        has_probe=remote.has_probe if remote.wanted else probe is not None or model == "reference",
        interval=interval,
        schedule=schedule,
        threshold=threshold,
        low=low,
        consecutive=consecutive,
        check_prompt=check_prompt,
        release=release,
        window_tokens=window_tokens,
        on_flag=on_flag,
        on_error=on_error,
        replacement=replacement,
        own_refusal=own_refusal,
    )
    checker, policy = checks.checker(), checks.policy()
    generation = generation_settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop=stop,
        seed=seed,
        endpoint=remote.wanted,
    )
    with ExitStack() as opened:
        if remote.wanted:
            answer, title = remote.answer(checker, policy, no_guard=no_guard, generation=generation, opened=opened)
        else:
            guard = load_guard(
                model, probe=probe, check=checker, policy=policy, check_pass=check_pass, device=device, dtype=dtype
            )
            if not no_guard:
                note_schedule(policy, guard.policy)
            stream = guard.unguarded if no_guard else guard.stream
            answer, title = partial(stream, **generation), f"{model}, checks by {guard.checker.name}"
        if checks.lacks_probe and not (no_guard or json or self_check):
            note("no probe for this model: rethink decides")
        if talk is None:
            from ada_guard.cli.chat import chat

            chat(answer, title=f"{model}, no guard" if no_guard else title, system=system)
            return
        with closing(answer(talk)) as events:
            if json:
                show_json(events)
            else:
                TextView().show(events)
