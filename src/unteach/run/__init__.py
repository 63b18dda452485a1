"""What a run is told, what it takes where it is told nothing, what it costs, and its record."""
