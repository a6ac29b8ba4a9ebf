"""The worker: what runs inside the user's process, next to torch. See `chaos.train.session`."""
