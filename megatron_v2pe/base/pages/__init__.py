"""Pages of text, tables and figures: what they are made of, and how they become one HTML file or one picture."""
