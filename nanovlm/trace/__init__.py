"""The shape tracer: every step that a tensor takes, at the level at which it was written. Needs torch only."""

from nanovlm.trace.result import Trace
from nanovlm.trace.run import trace, tracing

__all__ = ["Trace", "trace", "tracing"]
