"""Errors, names, files, signals and terminals: what every room uses.

It knows nothing of models, rewards or runs.
"""
