"""What is looked at before a run starts: its checkpoint, its data, its folders; and the report of a dry run."""
