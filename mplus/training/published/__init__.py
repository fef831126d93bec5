"""Training by the recipe of the published model."""
