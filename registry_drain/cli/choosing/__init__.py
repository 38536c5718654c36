"""Which instances an operator means, how they are found, and what it takes before they are touched.

``critical_since`` answers what no registry does, from what earlier looks have seen.
"""
