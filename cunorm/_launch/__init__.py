"""A kernel on its arrays: where their rows lie, what is built for them, and its launch."""
