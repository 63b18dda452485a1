"""The field's benchmarks as protocols: which sets are asked, what is measured on each, what needs a
retrained model.
"""
