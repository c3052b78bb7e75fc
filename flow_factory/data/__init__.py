"""The data set: `reader` (lines -> rows), `media` (files -> images and videos; `mp4` the other way), `cache` (rows -> conditions, once),
`order` (which rows an epoch takes)."""
