"""Write: text becomes memory tokens."""
