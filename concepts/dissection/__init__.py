"""The parts of network dissection; `concepts.dissection.dissection` puts them together."""
