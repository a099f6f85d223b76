"""Linear probes: the artefact, and how one is collected, fitted and calibrated. Needs the extra ``local``."""

from ada_guard.probe.artefact import LinearProbe, ProbeCard

__all__ = ["LinearProbe", "ProbeCard"]
