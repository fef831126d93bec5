"""The frozen language model, and small changes to it."""
