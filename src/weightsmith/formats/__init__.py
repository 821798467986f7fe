"""File formats: bounded header parsing, streaming reading and writing. No model code, no torch."""
