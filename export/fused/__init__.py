"""The fused form: front end, encoder and the whole loop of passes as one graph, one call a chunk.

`compose.fuse` puts it together from a quantised encoder and head, `keywords.fuse_keywords` from a
keyword model; `files` writes either.
"""
