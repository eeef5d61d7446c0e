"""Subjects that come with the judge."""
