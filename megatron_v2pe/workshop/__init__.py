"""What tools and examples need and training does not: long-context data, checking and looking at data, made-up sets."""
