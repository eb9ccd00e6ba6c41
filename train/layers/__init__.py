"""Layers of streaming encoders: whole utterances in `forward`, a chunk at a time in `step`."""
