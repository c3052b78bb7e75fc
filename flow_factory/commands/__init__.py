"""The commands beside `ff-train`.

Thin layers over the rooms.
"""
