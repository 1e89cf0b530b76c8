"""Where shards are trained: on Ray. The only package that imports it."""
