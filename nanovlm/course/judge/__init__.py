"""The judge: the ladder that every check climbs (engine), and what an exercise is."""
