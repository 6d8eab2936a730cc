"""Pictures and tables for people."""

VIEWS = ("photograph", "segments", "semantic", "instances")  # of a result
