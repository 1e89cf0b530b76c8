"""What the benchmarks of approximate unlearning are made of."""
