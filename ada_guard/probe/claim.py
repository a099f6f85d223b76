"""Keeps a folder of collected states for one command at a time, and for nothing but them. Knows no states.

The lock is a file that holds the host and the process that made it. Nothing removes it where a process was killed: the
next command sees that the process is gone, and takes it over.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ada_guard.errors import ConfigError

__all__ = ["OWN_ANSWERS", "claimed"]

OWN_ANSWERS = "own_answers.jsonl"
"""What a model was asked for before its answers are read, in the same folder."""
_LOCK = "collecting.lock"
_OWN = frozenset({"shards", "rows.jsonl", "rows.jsonl.partial", "about.json.partial", OWN_ANSWERS, _LOCK})
"""What a collection that broke off at its very beginning leaves."""
_held: dict[Path, int] = {}
"""Locks of this process, each with the thread that took it; one that is not here was left by an earlier process."""


@contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Keeps other commands out of a folder while the block runs; makes the folder if it is not there.

    Within the block the same thread may claim it again.

    Raises:
        ConfigError: Another command fills it, it holds other files, or nothing can be written there.
    """
    folder = Path(folder).absolute()
    lock = folder / _LOCK
    if _held.get(lock) == threading.get_ident():
        yield
        return
    try:
        _require_no_other_files(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _take(lock)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {str(folder)!r} ({error.strerror or type(error).__name__}): make room and run the "
            "command again, it goes on from here"
        ) from None
    _held[lock] = threading.get_ident()
    try:
        yield
    finally:
        del _held[lock]
        with suppress(OSError):
            lock.unlink(missing_ok=True)
            folder.rmdir()  # if nothing came of it; fails where there is anything


def _require_no_other_files(folder: Path) -> None:
    if not folder.exists() or (folder / "about.json").exists():
        return  # whether those are states of the same rows is the collection's own question
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is a file: states need a folder of their own")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if names - _OWN or any((folder / "shards").glob("*")):
        raise ConfigError(f"{str(folder)!r} holds other files: states need a folder of their own, give a new one")


def _take(lock: Path) -> None:
    for _ in range(2):
        try:
            made = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            if not _is_left_over(lock):
                break
            lock.unlink(missing_ok=True)
            continue
        try:
            os.write(made, f"{socket.gethostname()} {os.getpid()}\n".encode())
        except OSError:
            lock.unlink(missing_ok=True)
            raise
        finally:
            os.close(made)
        return
    raise ConfigError(
        f"another command is collecting into {str(lock.parent)!r}: wait for it, or give another folder; if there is "
        f"none, delete {_LOCK} there"
    )


def _is_left_over(lock: Path) -> bool:
    """Whether the process that made a lock has ended; no, where that cannot be told."""
    try:
        host, number = lock.read_text(encoding="utf-8").split()
        process = int(number)
    except FileNotFoundError:
        return True  # given back meanwhile
    except (OSError, ValueError):
        return False
    if host != socket.gethostname() or os.name == "nt":  # on Windows the question would end the process
        return False
    if process == os.getpid():
        return lock not in _held
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False  # another user's
    return False
