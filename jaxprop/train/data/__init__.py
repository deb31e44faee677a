"""Where batches come from, and on which devices they are placed."""
