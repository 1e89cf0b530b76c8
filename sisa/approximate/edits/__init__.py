"""Edits without an optimizer: pure functions from a parameter mapping to a new one.

What an edit needs to know of a module and its data (importance, relevance, Gram matrices, counts of
codes) is measured by the functions beside it, which take a module and an iterable of batches.
"""
