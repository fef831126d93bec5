"""Recall: finds the memory tokens that answer a question."""
