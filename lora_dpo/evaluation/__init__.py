"""Before and after: preferences, answers, report and pictures."""
