"""Chapter 16: questions to answer before the result is shown."""

from __future__ import annotations
