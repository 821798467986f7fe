"""The search: from a feature and a running model to a Pareto front of edits, effect against damage.

What is compared is never generated: candidates are judged by teacher-forced passes over a few prompts, and by gradients
through them. :mod:`.passes` makes such passes cheap, :mod:`.material` says what is passed, :mod:`.space` what may change,
:mod:`.objectives` what is wanted, :mod:`.gradient`, :mod:`.closed` and :mod:`.blackbox` look for it, :mod:`.front` chooses.
"""
