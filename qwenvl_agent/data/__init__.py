"""From recorded data to batches."""
