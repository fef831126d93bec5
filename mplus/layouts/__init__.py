"""How a memory is laid out: what is kept together, what leaves, what is chosen, in which order it is read."""
