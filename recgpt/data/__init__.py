"""From an event log to sequences and batches."""
