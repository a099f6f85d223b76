"""Build the reference model: `python -m ada_guard.reference.build`. Seeded; about 20 minutes on two cores."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from transformers.utils.logging import disable_progress_bar

from ada_guard.reference import BASE_DIR
from ada_guard.reference.corpus import Corpus, tokenizer_lines
from ada_guard.reference.train import optimise, save, train_tokenizer, untrained_model

if TYPE_CHECKING:
    from ada_guard.reference.probing import Recipe

__all__ = ["build", "build_probe", "main"]

_TOKENS_PER_BATCH = 6400
_BASE_STEPS, _BASE_RATE = 240, 3e-3
_CHAT_STEPS, _CHAT_RATE = 1050, 2.5e-3
_SHORT = 0.55  # of the chat steps are on short texts
_TOLD_EVERY_SECONDS = 10
_QUICK = 25  # steps of each phase with --quick: for a look at the recipe, the model is of no use


@contextmanager
def _progress(name: str, steps: int) -> Iterator[Callable[[float], None]]:
    """A function to call with each step's loss: a bar on a terminal where rich is installed, else lines."""
    if not (sys.stdout.isatty() and find_spec("rich")):
        done, started = 0, time.perf_counter()

        def line(loss: float) -> None:
            nonlocal done
            done += 1
            if done % 50 == 0 or done == steps:
                print(f"{name}: {done}/{steps}  loss {loss:.3f}  {time.perf_counter() - started:.0f} s", flush=True)

        yield line
        return
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task(name, total=steps)
        yield lambda loss: progress.update(task, advance=1, description=f"{name} loss {loss:.3f}")


def build(out: Path, seed: int = 0, *, quick: bool = False) -> None:
    """Train tokenizer, base and chat model, fit the probe, and write them to `out`.

    Args:
        out: The folder to write to.
        seed: Of the data, the first weights and their order. On one machine equal seeds give equal files.
        quick: A few steps only, and no probe.
    """
    base_steps, chat_steps = (_QUICK, _QUICK) if quick else (_BASE_STEPS, _CHAT_STEPS)
    tokenizer = train_tokenizer(tokenizer_lines(Random(f"tokenizer {seed}")))
    model = untrained_model(seed)
    corpus = Corpus(tokenizer, Random(f"base {seed}"))
    with _progress("base", base_steps) as report:
        batches = corpus.batches(corpus.base_sequence, _TOKENS_PER_BATCH)
        optimise(model, batches, steps=base_steps, peak_rate=_BASE_RATE, report=report)
    save(model, tokenizer, out / "base")
    short = Corpus(tokenizer, Random(f"short chat {seed}"), short=True)
    deep = Corpus(tokenizer, Random(f"chat {seed}"))
    with _progress("chat", chat_steps) as report:
        first = islice(short.batches(short.chat_sequence, _TOKENS_PER_BATCH), int(_SHORT * chat_steps))
        batches = chain(first, deep.batches(deep.chat_sequence, _TOKENS_PER_BATCH))
        optimise(model, batches, steps=chat_steps, peak_rate=_CHAT_RATE, report=report)
    save(model, tokenizer, out / "chat")
    if not quick:
        build_probe(out, seed)


def build_probe(out: Path, seed: int = 0, recipe: Recipe | None = None) -> None:
    """Make the probe for the chat model in `out`, as it is there, and write it beside it.

    Args:
        out: The folder with `chat`.
        seed: Of rows, answers and fit.
        recipe: None for that of the bundled probe.
    """
    from ada_guard.reference.probing import RECIPE, save_probe

    said: dict[str, float] = {}

    def tell(phase: str, done: int, total: int) -> None:
        if done == total or time.perf_counter() - said.get(phase, 0.0) >= _TOLD_EVERY_SECONDS:
            said[phase] = time.perf_counter()
            print(f"probe, {phase}: {done}/{total}", flush=True)

    save_probe(out / "chat", out / "probe.safetensors", recipe or RECIPE, seed=seed, progress=tell)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ada_guard.reference.build", description=__doc__)
    parser.add_argument(
        "--out", type=Path, default=BASE_DIR.parent, help="folder for base/ and chat/ (default: the package)"
    )
    parser.add_argument("--seed", type=int, default=0)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--quick", action="store_true", help="a few steps only, to see that it runs")
    part.add_argument("--probe-only", action="store_true", help="make the probe again for the chat model that is there")
    options = parser.parse_args(arguments)
    if options.probe_only and not (options.out / "chat").is_dir():
        parser.error(f"--probe-only needs the chat model: there is no folder {options.out / 'chat'}")
    disable_progress_bar()
    started = time.perf_counter()
    if options.probe_only:
        build_probe(options.out, options.seed)
    else:
        build(options.out, options.seed, quick=options.quick)
    wrote = "base and chat" if options.quick else "probe" if options.probe_only else "base, chat and probe"
    print(f"wrote {wrote} to {options.out} in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
