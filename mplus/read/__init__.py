"""Read: a prompt is processed with memory in front of it."""
