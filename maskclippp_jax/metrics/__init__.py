"""Metrics in numpy; they know no model. All have `reset`, `process` and `evaluate`."""
