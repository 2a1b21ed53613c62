"""The shape tracer: every step that a tensor takes, at the level at which it was written. Needs torch only."""

from nanovlm.trace.compare import ShapeMismatch
from nanovlm.trace.patch_map import PatchMap, patch_map
from nanovlm.trace.result import Trace
from nanovlm.trace.run import trace, tracing

__all__ = ["PatchMap", "ShapeMismatch", "Trace", "patch_map", "trace", "tracing"]
