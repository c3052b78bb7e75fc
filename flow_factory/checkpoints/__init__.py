"""Files of weights and of training states. A file is complete or absent, and loading one never runs code.

It does not decide when a run saves.
"""
