"""Which records exist, where they sit, whose they are, and how they are erased."""
