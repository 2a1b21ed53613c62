"""Chapter 08: training."""
