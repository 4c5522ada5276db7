"""What a data set contains, and what training would refuse."""
