"""Is it true? Scores, intervals, and the protocols that a number depends on (chapter 10)."""
