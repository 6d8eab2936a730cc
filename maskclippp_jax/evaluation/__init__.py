"""What `evaluate` is made of: ground truth, passes over pictures, counts, tables, rows."""
