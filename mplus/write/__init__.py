"""Write: turns text into memory tokens."""
