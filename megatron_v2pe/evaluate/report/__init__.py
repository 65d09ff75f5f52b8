"""From raw answers to the two published tables, heat maps, series over length and stride, and an audit of averages."""
