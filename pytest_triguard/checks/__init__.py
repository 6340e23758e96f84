"""What each assertion measures, one file per question asked of a classifier."""
