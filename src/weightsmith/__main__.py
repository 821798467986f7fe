"""``python -m weightsmith``."""

from .start import main

main()
