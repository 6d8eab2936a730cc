"""Data sets: from official archives to padded batches."""
