"""What a run leaves for people: metrics, curves, pictures, trackers.

Nothing that training depends on.
"""
