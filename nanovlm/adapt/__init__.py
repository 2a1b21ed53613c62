"""A trained model on your own data with few weights: LoRA, 4-bit bases, frozen parts (chapter 15)."""
