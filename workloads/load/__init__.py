"""Loads: jobs that run for a time, at a rate, several at once, and are seen over time.

A load is one case. Its leader (workloads.load.leader) is the child that the runner knows; it forks
a worker for each process of each job, and each worker turns an engine: one for each way to make the
kernel pin pages, and one for each antagonist (workloads.antagonists).
"""
