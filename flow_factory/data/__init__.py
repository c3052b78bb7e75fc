"""The data set: rows from any source, their media, the cache of encoded rows, and the order of rows.

It knows no model: the caller passes the function that encodes a row.
"""
