"""The command line: one file per verb; each parses, calls a job, renders, and exits."""
