"""Examples of every kind with content ids: images, texts, tensors, other libraries' data sets, remote files.

Whatever someone has becomes examples by `probing.data.examples.as_examples`.
"""
