"""How well a memory remembers: tasks, metrics and the protocol of retention."""
