"""Mutants: the reference with one named fault in one stage. They prove the judge."""
