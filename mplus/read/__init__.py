"""Read: a prompt is answered with memory in front of it."""
