"""The loop: roll out, score, learn, with evaluation, logging and checkpoints.

It knows no file format and no model family.
"""
