"""Other ways to classify, to compare with."""
