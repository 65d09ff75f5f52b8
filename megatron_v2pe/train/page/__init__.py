"""The page of a run: what its files say, as figures, tables and words in one HTML file. It is made of files alone."""
