"""The parts of network dissection; `concepts.dissect` puts them together."""
