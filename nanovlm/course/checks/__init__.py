"""Checks that teach: the shared ladder in engine.py, and one module of exercises for each chapter."""
