"""What is observed: one module per kernel interface, each with a pure ``parse`` and a ``read``.

Nothing here changes the machine, and nothing here imports workloads or pinstorm.
"""
