"""Training, judging and running a detector."""
