"""Approximate unlearning of models that were trained without shards or cannot be rebuilt.

Nothing here produces an exact certificate, and no evidence of it replaces one.
"""
