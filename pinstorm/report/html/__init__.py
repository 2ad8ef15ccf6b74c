"""report.html: bundles as one page that opens anywhere.

``aggregates`` computes what a page says in polars, ``model`` puts it into words, ``page`` renders
and writes it. ``plots`` draws. Only commands that write a page import any of them.
"""
