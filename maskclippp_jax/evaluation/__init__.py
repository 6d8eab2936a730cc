"""What `evaluate` is made of: ground truth, runs over pictures, counts, tables, published rows."""
