"""Several processes: how they start, meet, wait for each other and tell each other things; `engines` share weights out.

Knows no algorithm and no model family.
"""
