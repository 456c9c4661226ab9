"""Lanes: one child process per device that runs models, and its supervisor in the host.

``supervisor.Lane`` is what the host uses; ``lane`` is the child's program. Between them: ``messages`` over ``channel``, large
arrays through ``memory_file``. Nothing here imports torch; the child meets it only through the plugins that it loads.
Imports are from the modules themselves, so that the child does not pay for the host's half.
"""
