"""Tables, plots and pages from a run's folder. Nothing here imports torch."""
