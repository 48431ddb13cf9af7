"""Models for others: files of every format, cards, usage, where they come from."""
