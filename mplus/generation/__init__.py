"""Generation: answers prompts with memory."""
