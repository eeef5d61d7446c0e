"""Results: everything that is made of verdicts."""
