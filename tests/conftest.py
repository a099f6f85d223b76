"""Shared fixtures. Tests use one thread of torch, so that two runs on one machine do not starve each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import tiny_models
import torch

from ada_guard.local import LocalModel


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> LocalModel:
    """A random llama: says nonsense, but the same nonsense always."""
    return LocalModel(tiny_models.build("llama"), tiny_models.tokenizer(), name="tiny")
