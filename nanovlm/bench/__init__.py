"""How fast: this package against transformers' SmolVLM class, on the same weights and inputs, in one run."""
