"""What everything else stands on: errors, content ids, seeds, files and locks, packages and archives, progress.

Nothing here knows of networks' layers, of examples or of methods.
"""
