"""What a run writes for people: metrics, curves, images, trackers.

Training depends on nothing in it.
"""
