"""The networks: mathematics only, no files, flags or data set names."""
