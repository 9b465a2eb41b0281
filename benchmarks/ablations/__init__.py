"""One factor at a time from one default for each log, with the noise of the seeds: what each method is worth."""
