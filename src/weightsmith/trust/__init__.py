"""Floor 1, trust: what a model's files hold, found out without running any of it.

* :mod:`.items` the files of a folder, opened safely, and what a scanner sees of them
* :mod:`.kinds` what a file is, by its content
* :mod:`.rules` the rules and what each means
* :mod:`.scan` every scanner over every file, whole; findings and a verdict
* :mod:`.child` the same in a process of its own, with limits on time and memory
* :mod:`.gate` what every job that takes a model goes through; remembered verdicts
* :mod:`.policy` what a team accepts
* :mod:`.sandbox` what a process that runs a model may still do, :mod:`.seccomp` the half of it about system calls,
  :mod:`.staging` how its outputs come out, :mod:`.apart` one step of a job in it
* :mod:`.scanners` what looks into the files
* :mod:`.pins` digests that somebody vouched for

Scanners are plug-ins (entry-point group ``weightsmith.scanners``): see :class:`.items.Scanner`.
"""
