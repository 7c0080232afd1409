"""Run records and the commands that read them: plan, status, runs, gc."""
