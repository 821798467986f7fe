"""Measuring: scorers, divergences, intervals, and one paired comparison of two models."""
