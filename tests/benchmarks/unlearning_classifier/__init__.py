"""Parts of `unlearn_classifier.py`."""
