"""Evaluations of a guard: attacks, depth curves, over-refusal. Nothing is here yet."""
