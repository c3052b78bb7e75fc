"""The commands `ff-data`, `ff-reward` and `ff-generate`, and the work of `ff-train --test-run`.

They are thin layers over the rooms.
"""
