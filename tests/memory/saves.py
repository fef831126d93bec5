"""Memories to save, and what must come back."""

import torch

from mplus.model import MPlus
from mplus.read.prefill import prefill

QUESTION = "Which box is blue?"


def logits(model: MPlus, memory) -> torch.Tensor:
    return prefill(model.weights, [model.read_request(memory, QUESTION)], all_logits=True).logits


def written(model: MPlus, text: str):
    memory = model.new_memory(seed=4)
    model.write(memory, text, source="a", metadata={"page": 3, "tags": ["x"]})
    model.write(memory, "Hi!", source="tail")
    return memory
