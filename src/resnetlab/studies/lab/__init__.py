"""What every study shares: its plan, its runs, its table, its verdict, its page."""
