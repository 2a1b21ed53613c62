"""Other designs of a vision-language model, each as parts for `VisionLanguageModel` (chapter 17)."""
