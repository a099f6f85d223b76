"""The command ``ada-guard``. Needs the extra ``cli``; a command that runs a model needs ``local`` too."""

from __future__ import annotations

import sys

from ada_guard.errors import MissingExtraError

__all__ = ["main"]


def main() -> None:
    """Runs the command line on ``sys.argv`` and exits."""
    try:
        try:
            import rich  # noqa: F401  # only to say which extra is missing, in one line
            import typer  # noqa: F401
        except ImportError:
            print(f"ada-guard: {MissingExtraError('the command line', 'cli')}", file=sys.stderr)
            raise SystemExit(1) from None
        from ada_guard.cli.app import app

        app(prog_name="ada-guard")
    except KeyboardInterrupt:
        # Ctrl-C before a command runs: while modules are imported, or typer puts the commands together.
        raise SystemExit(130) from None
