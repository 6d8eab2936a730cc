"""Using what is here from other projects."""
