"""Generation, metrics, scorers and benchmarks."""
