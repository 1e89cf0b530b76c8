"""Torture: kills, lost writes, failing calls, bad bytes, crowds and random histories.

`python -m tests.torture --help` from the checkout. The production code knows nothing of it: what is
disturbed is patched in forked child processes.
"""
