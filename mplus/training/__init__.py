"""Training M+ onto a model: the retriever's projection and the read adapter."""
