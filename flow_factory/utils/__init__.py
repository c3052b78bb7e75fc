"""Errors, names, files, signals, terminals: what every room uses.

Knows nothing of models, rewards or runs.
"""
