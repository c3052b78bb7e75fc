"""The data set: `reader` (a file -> rows; `lines`: one of them; `v2`: of the public form), `sources` (what `datasets` reads; `table`: its
rows; `embedded`: files in them), `columns` (those of a row, of either), `media` (files -> images and videos; `mp4` the other way), `cache`
(rows -> conditions, once; kept by `shards`, found by `index`, made bytes by `packing`, told apart by `fingerprints`; `condition_files`:
pictures stay where they are; `cache_folder`: what is there), `order` (which rows an epoch takes); `show`, `survey`, `thumbnails`"""
