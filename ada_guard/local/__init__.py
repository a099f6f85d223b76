"""Local Hugging Face models: generation with checks that ride in the decode step. Needs the extra ``local``."""

from ada_guard.errors import MissingExtraError

try:
    import torch  # noqa: F401  # only to say which extra is missing, in one line
    import transformers  # noqa: F401
except ImportError:
    raise MissingExtraError("a local model", "local") from None

from ada_guard.local.model import LocalModel, StateProbe
from ada_guard.local.stream import LocalStream

__all__ = ["LocalModel", "LocalStream", "StateProbe"]
