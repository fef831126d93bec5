"""What is remembered: pools, their state, and how it is kept."""
