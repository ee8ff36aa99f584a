"""What an audit measures: its file, the images it names, effects and directions, and the saved results."""
