"""The commands `ff-data`, `ff-reward`, `ff-generate` and `ff-eval`, and `ff-train init`, `examples` and `--test-run`.

They are thin layers over the rooms.
"""
