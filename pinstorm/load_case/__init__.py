"""A load as the runner sees it: observed over time, tallied by job, judged.

``observation`` runs it, ``tally`` adds its intervals up, ``judgement`` says what is wrong with it.
"""
