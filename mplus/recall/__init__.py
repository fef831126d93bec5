"""Recall: which of the remembered tokens answer a question."""
