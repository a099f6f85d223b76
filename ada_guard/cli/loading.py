"""Loads a model with a quiet stderr and, on a terminal, a progress bar. Imports torch only when called."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ada_guard.cli.view import note, printable
from ada_guard.errors import ConfigError, ProbeWarning

if TYPE_CHECKING:
    from ada_guard.guard import Guard

__all__ = ["busy", "is_here", "load_guard", "quiet", "require_meant"]

_BUNDLED = ("reference", "reference-base")
_HUB_SECONDS = 10.0


def quiet() -> None:
    """Keeps log lines, warnings and bars of the libraries off stderr, where our own lines stand."""
    # The fast tokenizers warn when a process forks after their use; we never fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.simplefilter("ignore")
    # Those are ours, and about what the user does: each a line like our others.
    warnings.simplefilter("default", ProbeWarning)
    warnings.showwarning = _show
    logging.getLogger("torch").setLevel(logging.ERROR)
    from ada_guard.local import LocalModel  # says in one line which extra is missing, before transformers is touched

    del LocalModel
    import huggingface_hub.utils
    import transformers.utils.logging

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # it has no annotations


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In the place of `warnings.showwarning`: one line, as the commands' own are."""
    del category, filename, lineno, file, line
    note(printable(str(message)))  # a probe's card may name dtypes and adapters as it likes


def is_here(model: str) -> bool:
    """Whether the model is on this machine, so that loading it downloads nothing.

    Raises:
        ConfigError: It is not, and the hub has none of that name or cannot be asked: at once, where loading would try
            again and again.
    """
    if model in _BUNDLED or Path(model).exists():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        if isinstance(try_to_load_from_cache(model, "config.json"), str):
            return True
    except HFValidationError:
        return False  # a path: loading tells at once that there is none
    _require_on_hub(model)
    return False


def require_meant(model: str) -> None:
    """Refuses a misspelt name of a bundled model, before anything is imported or looked for.

    Raises:
        ConfigError: There is nothing of that name here, and a bundled model has nearly the same.
    """
    if model in _BUNDLED or "/" in model or Path(model).exists():
        return
    meant = get_close_matches(model, _BUNDLED, n=1, cutoff=0.75)
    if meant:
        raise ConfigError(f"no model folder or hub id {model!r}: did you mean {meant[0]}?")


def _require_on_hub(model: str) -> None:
    require_meant(model)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().model_info(model, timeout=_HUB_SECONDS)
    except RepositoryNotFoundError:
        raise ConfigError(
            f"cannot load the model {model!r}: no such folder and no such id on the hub, or one that needs a token"
        ) from None
    except Exception as error:  # noqa: BLE001  # loading says what else there is; a mirror may not know this question
        # By name: the classes are those of an HTTP library that the hub's client brings along.
        if isinstance(error, ConnectionError) or "Connect" in type(error).__name__:
            raise ConfigError(
                f"cannot load the model {model!r}: no such folder, and the hub cannot be reached to look for that id"
            ) from None


@contextmanager
def busy(text: str) -> Iterator[None]:
    """A moving bar with the elapsed time on stderr while the block runs; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(bar_width=30), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(text, total=None)
        yield


def load_guard(model: str, **settings: Any) -> Guard:
    """`Guard.from_pretrained`, quietly.

    Args:
        model: Id, folder, ``"reference"`` or ``"reference-base"``.
        settings: As `Guard.from_pretrained` takes them.
    """
    require_meant(model)
    from ada_guard.guard import Guard

    with busy("importing torch"):
        quiet()
    if not is_here(model):
        # The hub draws bars of its own while it downloads: two sets of them would overwrite each other.
        return Guard.from_pretrained(model, **settings)
    with busy(f"loading {model}"):
        return Guard.from_pretrained(model, **settings)
