"""The doctor for a network you wrote yourself: compares it with a reference and says what is wrong, and where."""
