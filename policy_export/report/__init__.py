"""What the results say, for people: tables of the documentation, and the report."""
