from __future__ import annotations

import asyncio

import pytest
from llama_index.core import Settings


@pytest.fixture(autouse=True)
def _no_event_loop_is_left_open() -> None:
    """LlamaIndex asks for the thread's event loop, has one made where none was ever set, and leaves it open.

    Where it is set to none, LlamaIndex runs one of its own and closes it.
    """
    asyncio.set_event_loop(None)


@pytest.fixture(autouse=True)
def _no_callbacks_of_other_tests() -> None:
    """Once anything has asked for the Settings' callbacks, every new manager without handlers shares their list."""
    Settings._callback_manager = None
