"""Sources that are not a local model: OpenAI-compatible endpoints, and any iterable of strings.

Importing this loads neither httpx nor torch. A source has ``pull`` (the next `Delta`, or None at the end) and
``close``, both as steps (`ada_guard.steps`).
"""

from ada_guard.sources.endpoint import Endpoint, Timeouts
from ada_guard.sources.endpoint_stream import EndpointStream
from ada_guard.sources.iterable import IterableSource

__all__ = ["Endpoint", "EndpointStream", "IterableSource", "Timeouts"]
