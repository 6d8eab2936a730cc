"""Networks that propose masks, one file each; mathematics only, as in `models`."""
