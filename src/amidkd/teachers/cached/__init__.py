"""A teacher's signals on disk: written once by ``amidkd cache``, read in any order by any run on the same rows."""

from amidkd.teachers.cached.entries import Entry, entries_of, key_of
from amidkd.teachers.cached.layout import Layout
from amidkd.teachers.cached.manifest import Manifest, is_complete, read_manifest
from amidkd.teachers.cached.teacher import CachedTeacher, cache_folder, open_cache, tokenizer_folder
from amidkd.teachers.cached.write import CacheSettings, Plan, plan_cache, write_cache

__all__ = [
    "CacheSettings",
    "CachedTeacher",
    "Entry",
    "Layout",
    "Manifest",
    "Plan",
    "cache_folder",
    "entries_of",
    "is_complete",
    "key_of",
    "open_cache",
    "plan_cache",
    "read_manifest",
    "tokenizer_folder",
    "write_cache",
]
