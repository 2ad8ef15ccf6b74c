"""What this host can do and what stands in the way, before anything is run: ``pinstorm doctor``.

pinstorm.doctor.examination looks, with the telemetry modules and with what ``run`` itself asks
(pinstorm.needs); one module per topic makes findings of it. pinstorm.doctor.against compares two.
"""
