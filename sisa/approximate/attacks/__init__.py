"""Attacks on a model that is said to have forgotten: what they find, an exact retrain would not.

That an attack finds nothing proves nothing; a better one may.
"""
