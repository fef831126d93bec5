"""The ``mplus`` command."""
