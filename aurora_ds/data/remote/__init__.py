"""Shards that lie behind a URL, read through a cache of whole files on this machine."""

from aurora_ds.data.remote.location import is_remote as is_remote
from aurora_ds.data.remote.store import open_shards as open_shards
