"""What a run takes of its devices and of main memory, worked out from headers and shapes, and what would make it fit.

Loads no weights.
"""
