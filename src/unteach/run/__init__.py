"""A run: its pipeline, training, folder and record."""
