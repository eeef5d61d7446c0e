"""Stages of the bridge, one file for each stage, named as the reference's files are."""
