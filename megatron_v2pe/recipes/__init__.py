"""Named runs: functions that return an `ExperimentConfig`, and the registry of their names."""
