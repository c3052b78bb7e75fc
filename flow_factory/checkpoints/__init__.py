"""Files of weights and of training states: whole or absent, and never code.

Knows not when a run saves.
"""
