"""How a model learns: loss, optimiser, one step, what is measured on the way."""
