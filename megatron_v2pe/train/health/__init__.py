"""Whether a run is healthy: what is looked at in its steps and between them, and what follows where it is not."""
