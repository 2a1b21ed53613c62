"""The exercises of chapter NN are in chNN/: one module for each topic, and the chapter's quizzes."""
