"""``python -m weightsmith.cli``."""

from .main import main

main()
