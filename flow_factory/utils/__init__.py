"""Errors, names, files, signals and terminals: what every folder uses.

It knows nothing of models, rewards or runs.
"""
