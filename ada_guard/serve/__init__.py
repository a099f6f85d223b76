"""A sidecar as a service, so that many workers of an application share one model. Needs the extra ``serve``."""

from ada_guard.errors import MissingExtraError

try:
    import fastapi  # noqa: F401  # only to say which extra is missing, in one line
    import prometheus_client  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError:
    raise MissingExtraError("the sidecar server", "serve") from None

from ada_guard.serve.app import create_app
from ada_guard.serve.process import bind, serve
from ada_guard.serve.settings import ServeSettings

__all__ = ["ServeSettings", "bind", "create_app", "serve"]
