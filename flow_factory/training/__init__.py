"""The loop: roll out, score, learn; evaluations, logs and checkpoints around it.

Knows no file format and no model family.
"""
