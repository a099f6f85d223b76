"""Sources that are not a local model: endpoints and iterables. Nothing is here yet."""
