"""Sidecars: what owns the model into which the Safety Tokens are injected."""
