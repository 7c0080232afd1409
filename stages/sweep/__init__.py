"""The results of a sweep: scores of its runs, means, intervals and paired differences."""
