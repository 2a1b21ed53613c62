"""A trained model made small: distillation, whole numbers instead of floats, pruning (chapter 16)."""
