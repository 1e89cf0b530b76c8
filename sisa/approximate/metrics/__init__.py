"""Metrics of forgetting and of utility: pure functions of what one forward pass gives."""
