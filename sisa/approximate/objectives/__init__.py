"""Objectives as pure functions of tensors: of rows, of items and of hidden states."""
