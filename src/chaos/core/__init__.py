"""The protocol, without input or output: events and the time go in, actions come out."""
