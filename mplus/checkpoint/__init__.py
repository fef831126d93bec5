"""Where weights come from and how they are laid out on disk."""
