"""Every benchmark, a family in a file: where its data are, what is asked, what the scorer gets."""
