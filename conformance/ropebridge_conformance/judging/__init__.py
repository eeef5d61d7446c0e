"""Judging: questions, who they are put to, and the verdicts that come of them."""
