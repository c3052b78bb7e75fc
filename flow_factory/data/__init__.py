"""The data set: `reader` (lines -> rows), `cache` (rows -> conditions, once), `order` (which rows an epoch takes)."""
