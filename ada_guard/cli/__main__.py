"""``python -m ada_guard.cli`` is the command ``ada-guard``."""

from ada_guard.cli import main

if __name__ == "__main__":
    main()
