"""The commands `ff-data`, `ff-reward`, `ff-generate`, `ff-eval`, `ff-export` and `ff-view`; `ff-train init`, `examples`, `--test-run`.

They are thin layers over the other folders.
"""
