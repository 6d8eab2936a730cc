"""From masks and words to scores, label maps, segments and instances."""
