"""The sections of an audit's report, each made of saved results alone."""
