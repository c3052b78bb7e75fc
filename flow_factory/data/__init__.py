"""The data set: `reader` (a file -> rows; `lines`: one of them), `media` (files -> images and videos; `mp4` the other way), `cache`
(rows -> conditions, once), `order` (which rows an epoch takes)."""
