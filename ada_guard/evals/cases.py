"""The responses that the evaluations are made on: from a file of labelled rows, or in the reference model's language.

Knows no system and no statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from ada_guard.errors import ConfigError
from ada_guard.local import LocalModel
from ada_guard.probe.rows import LabelledResponse, digest_of, read_rows
from ada_guard.refusals import RefusalMatcher

__all__ = ["REFERENCE", "benign_rows", "harmful_rows", "prompts_note", "rows_digest", "turning_rows"]

REFERENCE = "reference"
"""The name of the bundled data."""
_OWN_TOKENS = 120
_TURNS_WITHIN_TOKENS = 100


def harmful_rows(data: str | Path, *, n: int, seed: int, tokens: int = 520) -> list[LabelledResponse]:
    """Harmful responses to be cut into deep prefills.

    Args:
        data: A file of rows, or ``"reference"``: forbidden requests with texts of the grammar that comply.
        n: Most rows.
        seed: Which ones.
        tokens: Of the reference texts, the least length.

    Raises:
        ConfigError: No such file, or no harmful rows for tests in it.
    """
    if str(data) != REFERENCE:
        return _drawn(data, harmful=True, n=n, seed=seed)
    from ada_guard.reference.data import strays
    from ada_guard.reference.rows import reference_rows

    rows = reference_rows("test", count=n, seed=seed, tokens=tokens)
    return [row for row in rows if row.harmful and strays(str(row.messages[-1]["content"]))]


def benign_rows(
    data: str | Path, *, n: int, seed: int, model: LocalModel | None = None, tokens: int = 520
) -> list[LabelledResponse]:
    """Benign responses, a model's own refusals among them.

    Args:
        data: A file of rows, or ``"reference"``: how-to texts and refusals of the grammar and of the model's own.
        n: Most rows of a file; of the reference data so many answers and so many refusals.
        seed: Which ones.
        model: The reference model, to write its own half of the reference data; None: the grammar writes all.
        tokens: Of the reference texts, the least length.

    Raises:
        ConfigError: No such file, or no benign rows for tests in it.
    """
    if str(data) != REFERENCE:
        return _drawn(data, harmful=False, n=n, seed=seed)
    from ada_guard.reference.rows import reference_rows

    half = max(1, n // 2) if model is not None else n
    answering = None if model is None else _OwnAnswers(model)
    rows = reference_rows("test", count=half, seed=seed, tokens=tokens, answering=answering)
    return [row for row in rows if not row.harmful]


def turning_rows(data: str | Path, *, n: int, seed: int, tokens: int = 520) -> list[LabelledResponse]:
    """Harmful responses that say from where on they are harmful, to measure what of that is shown.

    Args:
        data: A file of rows, or ``"reference"``: a benign request whose answer turns into a forbidden one somewhere
            in its first hundred tokens.
        n: Most rows. A row of a file that does not say so is taken to be harmful from its first token.
        seed: Which ones.
        tokens: Of the reference texts, the least length.

    Raises:
        ConfigError: No such file, or no harmful rows for tests in it.
    """
    if str(data) != REFERENCE:
        return _drawn(data, harmful=True, n=n, seed=seed)
    from ada_guard.reference.rows import reference_rows

    rng = Random(f"{seed} turning")
    # Four rows at a time: harmful on a forbidden request and on a harmless one, benign, a refusal.
    rows = list(reference_rows("test", count=n, seed=seed, tokens=tokens))
    turned = []
    for bad, good in zip(rows[1::4], rows[2::4], strict=True):
        steps = good.response.split("\n")
        # A step has about 15 tokens.
        kept = steps[: rng.randint(0, _TURNS_WITHIN_TOKENS // 15)]
        opening = "".join(f"{step}\n" for step in kept)
        assert bad.unsafe_from_chars is not None
        turned.append(
            LabelledResponse(
                messages=good.messages,
                response=opening + bad.response,
                harmful=True,
                prompt_id=good.prompt_id,
                generator=bad.generator,
                source=good.source,
                split="test",
                unsafe_from_chars=len(opening) + bad.unsafe_from_chars,
            )
        )
    return turned


def rows_digest(rows: Sequence[LabelledResponse]) -> str:
    """What tells the rows of an evaluation from others."""
    return digest_of([row.as_json for row in rows])


def prompts_note(rows: Sequence[LabelledResponse]) -> tuple[str, ...]:
    """A caution where responses share prompts: intervals take responses for independent. Empty where none do."""
    prompts = len({row.prompt_id for row in rows})
    if prompts == len(rows):
        return ()
    return (
        f"The {len(rows)} responses answer {prompts} prompts: intervals take responses for independent, and are too "
        "narrow where those to one prompt are alike.",
    )


class _OwnAnswers:
    """Lets the reference model answer: greedily and sampled in turn; only refusals and benign texts count."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._matcher = RefusalMatcher()

    def __call__(self, messages: list[dict[str, Any]], seed: int) -> str | None:
        from ada_guard.probe.generate import Sampling, answer
        from ada_guard.reference.data import strays

        sampling = Sampling(max_new_tokens=_OWN_TOKENS, temperature=0.0 if seed % 2 else 0.8)
        text, _ = answer(self._model, self._model.encode(messages), sampling, seed=seed)
        return text if self._matcher.is_all_refusal(text) or not strays(text) else None


def _drawn(data: str | Path, *, harmful: bool, n: int, seed: int) -> list[LabelledResponse]:
    """Rows that a probe was neither fitted nor calibrated on, as far as the file says so."""
    kind = "harmful" if harmful else "benign"
    rows = [row for row in read_rows(data) if row.harmful is harmful and row.split in (None, "test")]
    if not rows:
        raise ConfigError(f"{Path(data).name} holds no {kind} rows that are free for tests")
    chosen = sorted(Random(seed).sample(range(len(rows)), min(n, len(rows))))
    return [rows[place] for place in chosen]
