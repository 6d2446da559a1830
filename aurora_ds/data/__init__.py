"""Shards to batches: manifest, reading plan, tar reader, image and text rules, loaders; convert/ makes the shards."""
