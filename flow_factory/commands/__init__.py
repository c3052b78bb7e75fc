"""The commands `ff-data`, `ff-reward` and `ff-generate`, and `ff-train init`, `examples` and `--test-run`.

They are thin layers over the rooms.
"""
