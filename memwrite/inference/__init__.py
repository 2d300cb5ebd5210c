"""Running a writer over a context, and a backbone under a conditioning."""
