"""The frozen language model and its LoRA adapters."""
