"""The shape tracer: every step that a tensor takes, at the level at which it was written. Needs torch only."""

from nanovlm.trace.result import Trace
from nanovlm.trace.run import trace, tracing
from nanovlm.trace.show.diff import ShapeMismatch
from nanovlm.trace.show.patch_map import PatchMap, patch_map

__all__ = ["PatchMap", "ShapeMismatch", "Trace", "patch_map", "trace", "tracing"]
