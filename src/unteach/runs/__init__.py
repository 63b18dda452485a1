"""What a run is told, what it takes where it is told nothing, and its record."""
