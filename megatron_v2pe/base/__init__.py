"""What every part stands on: errors, logging, settings trees, keyed random numbers, locks, progress, exit statuses."""
