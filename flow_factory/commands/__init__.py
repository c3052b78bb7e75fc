"""The commands `ff-data`, `ff-reward`, `ff-generate`, `ff-eval` and `ff-view`, and `ff-train init`, `examples` and `--test-run`.

They are thin layers over the rooms.
"""
