"""Side-by-side benchmarks: pinstorm's engines beside fio and small C programs, and what telemetry
costs. Started by ``scripts/bench``; how the figures are made fair stands in docs/measuring.md.
"""
