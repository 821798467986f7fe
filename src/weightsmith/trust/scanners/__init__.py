"""What looks into a model's files: one scanner for each kind of file, and some for the folder as a whole.

Each is a :class:`weightsmith.trust.items.Scanner` with its rules; those built in are named in :mod:`weightsmith.trust.scan`.
"""
