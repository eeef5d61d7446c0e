"""Kernels: from rotated query and key to each head's mix of values, in several ways.

Everything here has axes batch head pos d_head, the layout the matrix products want. Key and value
heads are never copied for the query heads that share them.
"""
