"""Layouts of a memory: which tokens are kept together, evicted and recalled, and in which order they are read."""
