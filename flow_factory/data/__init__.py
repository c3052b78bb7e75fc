"""The data set: rows of any source, their media, their encoded conditions in a cache, the order of rows.

Knows no model: what encodes a row is handed in.
"""
