"""Digests that somebody vouched for: locks, checksums, signatures, the hub; and bytes that are used as they were checked."""
