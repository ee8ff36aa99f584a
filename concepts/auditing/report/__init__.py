"""What an audit's report says and shows, made from saved results alone."""
