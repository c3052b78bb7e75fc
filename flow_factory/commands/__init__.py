"""The commands `ff-data`, `ff-reward`, `ff-generate`, `ff-eval`, `ff-export` and `ff-view`, and `ff-train init`, `examples` and `--test-run`.

They are thin layers over the rooms.
"""
